"""Hours of training: the memory stays flat, and the rows of all other words bit for bit as they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = os.environ.get("MINTI_LONG_HAUL", "300")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_long_haul():
    """After the first fifth nothing grows by more than a few megabytes; a step's latents alone would by the last."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    script = Path(__file__).with_name("long_haul.py")
    done = subprocess.run([sys.executable, script, STEPS], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    haul = json.loads(done.stdout)
    assert haul["steps"] == int(STEPS)
    assert haul["unchanged"]
    assert max(haul["memory"][2:]) - haul["memory"][1] < 16
