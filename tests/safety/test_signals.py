"""Ctrl-C, SIGTERM, SIGHUP: the step is finished, the state saved, and it is said how to go on; twice ends at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minti

EXAMPLES = Path(__file__).parents[2] / "examples"
LIGHT = {"draw_concepts.py"}  # imports nothing that takes a while
SCRIPTS = [
    str(path.relative_to(EXAMPLES))
    for path in sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("toybox/*.py")])
    if "__main__" in path.read_text(encoding="utf-8") and path.name not in LIGHT
]
NOTED = "\nstopping after this step; once more to stop at once\n"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("step", [2, 8, 12])
def test_a_signal_lets_the_step_finish(lesson, whole, results, tmp_path, name, code, step):
    """Within a save, the first, one between and the last."""
    ended, process = lesson().run(tmp_path, faults=[("signal_at", "fsync", f"step-{step:06}", name)])
    assert (ended, process.stderr) == (code, NOTED)
    assert process.stdout == f"stopped at step {step} of {tmp_path}; the same command with --resume goes on\n"
    assert minti.load_checkpoint(tmp_path / "checkpoints").step == step
    ended, process = lesson().run(tmp_path, "--resume")
    assert (ended, process.stderr) == (0, "")
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_it_at_once(lesson, whole, results, tmp_path, name):
    ended, process = lesson().run(tmp_path, faults=[("signal_at", "fsync", "step-000006", name, 2)])
    assert (ended, process.stderr) == (-getattr(signal, name), NOTED)
    assert minti.load_checkpoint(tmp_path / "checkpoints").step == 4
    assert lesson().run(tmp_path, "--resume")[0] == 0
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_closed_terminal(lesson, whole, results, tmp_path, times):
    """SIGHUP comes from the kernel and from the shell, and nothing can be printed any more: the state is saved."""
    faults = [("closed_terminal",), ("signal_at", "fsync", "step-000006", "SIGHUP", times)]
    assert lesson().run(tmp_path, faults=faults)[0] == 129
    assert minti.load_checkpoint(tmp_path / "checkpoints").step == 6
    assert lesson().run(tmp_path, "--resume")[0] == 0
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
def test_nohup_goes_on(lesson, whole, results, tmp_path):
    ended, process = lesson().run(tmp_path, faults=[("nohup",), ("signal_at", "fsync", "step-000006", "SIGHUP")])
    assert (ended, process.stderr) == (0, "")
    assert results(tmp_path) == results(whole)


def test_signals_are_caught_within_and_as_before_after():
    """SIGHUP is noted, and not where it was ignored; in the end all are what they were."""
    from support.interruption import HANGUP, SIGNALS, Interruption

    device, former = torch.device("cpu"), {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for before, expected in ((signal.SIG_DFL, HANGUP), (signal.SIG_IGN, 0)):
            signal.signal(HANGUP, before)
            with Interruption() as interruption:
                os.kill(os.getpid(), HANGUP)
                os.kill(os.getpid(), HANGUP)
                assert (interruption.asked(device), interruption.number) == (expected > 0, expected)
            assert signal.getsignal(HANGUP) == before
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_ctrl_c_after_the_training_leaves_what_is_there(lesson, whole, results, tmp_path):
    """The word is saved, and the curves are being written."""
    ended, process = lesson().run(tmp_path, faults=[("signal_at", "fsync", "curves.png", "SIGINT")])
    assert (ended, process.stderr) == (130, "")
    names = ["checkpoints", "learned_embeds.safetensors", "losses.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert lesson().run(tmp_path, "--resume")[0] == 0
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_ctrl_c_while_the_model_is_loaded(workshop, tmp_path, script):
    prompt = ["a toy"] if script == "sample.py" else []
    ended, process = workshop.run(script, *prompt, "--output", tmp_path, faults=[("interrupted_while_loading",)])
    assert (ended, process.stdout, process.stderr) == (130, "", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports(tmp_path, script):
    """When torch is looked for, at the latest, Ctrl-C ends the process without a word."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Finder)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, "--help"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
