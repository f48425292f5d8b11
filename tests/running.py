"""How tests run the scripts of examples/."""

import io
import os
import runpy
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def script(name, *args, check=True, by=(sys.executable,)):
    """Runs a script of examples/ in a process of its own (`by` TORCHRUN in two); its code and what it printed."""
    done = subprocess.run(
        [*by, ROOT / "examples" / name, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def script_inside(name, *args, check=True):
    """The same in this process, which has done the imports already: most of a short script's time."""
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),  # scripts set `showwarning`
        io.StringIO() as out,
        io.StringIO() as err,
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python by itself does, and pytest does not
        patch.setattr(sys, "argv", [name, *map(str, args)])
        patch.syspath_prepend(ROOT / "examples")
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = 0
                runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
                if isinstance(code, str):  # as Python does at the end of a process
                    print(code, file=sys.stderr)
                    code = 1
        done = subprocess.CompletedProcess(name, code, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stderr
    return done
