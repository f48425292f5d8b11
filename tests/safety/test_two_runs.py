"""Two runs into one output folder, and one run in two processes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import ROOT, TORCHRUN

import minti

pytestmark = pytest.mark.slow


def test_the_second_run_is_told_and_the_first_is_as_if_alone(lesson, workshop, whole, results, tmp_path):
    """The first is stopped within a save while the others try."""
    first = lesson().start(tmp_path, faults=[("signal_at", "fsync", "step-000006", "SIGSTOP")])
    first.until_stopped()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for code, process in (
        lesson("--seed", 1).run(tmp_path),
        lesson().run(tmp_path, "--resume"),
        workshop.run("sample.py", "a toy", "--model", minti.TOYBOX, "--output", tmp_path),
    ):
        message = f"error: another run is writing to {tmp_path}; wait for it, or give another --output\n"
        assert (code, process.stdout, process.stderr) == (1, "", message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    first.send("SIGCONT")
    assert first.wait() == 0
    assert results(tmp_path) == results(whole)
    assert lesson().run(tmp_path, "--resume")[0] == 0  # whoever has ended holds nothing


def torchrun(lesson, folder, *more):
    """The lesson in two processes of one group, which can be killed together."""
    return subprocess.Popen(
        [*TORCHRUN, ROOT / "examples/train.py", "--output", folder, *map(str, lesson.options), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def children(pid):
    """The numbers of a process's children, its grandchildren included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = path.parent.name, path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
        except OSError:  # it has just ended
            continue
        if int(parent) == pid:
            found += [int(number), *children(int(number))]
    return found


def until(process, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_go_on_together(lesson, results, tmp_path):
    """Told to stop by torchrun once; killed together once; and ends as two that nobody disturbed."""
    long = lesson("--steps", 30, "--checkpoint-every", 1)
    undisturbed = torchrun(long, tmp_path / "whole")
    printed = undisturbed.communicate()
    assert undisturbed.returncode == 0, printed

    folder = tmp_path / "outputs"
    first = torchrun(long, folder)
    until(first, lambda: len(list(folder.glob("checkpoints/step-*"))) > 1)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate()
    stopped = minti.load_checkpoint(folder / "checkpoints").step
    assert stopped < 30
    assert f"stopped at step {stopped} of {folder}; the same command with --resume goes on" in out
    assert out.count("--resume") == 1

    second = torchrun(long, folder, "--resume")
    until(second, lambda: minti.load_checkpoint(folder / "checkpoints").step > stopped + 2)
    for number in [second.pid, *children(second.pid)]:
        os.kill(number, signal.SIGKILL)
    second.communicate()
    assert minti.load_checkpoint(folder / "checkpoints").step < 30

    third = torchrun(long, folder, "--resume")
    printed = third.communicate()
    assert third.returncode == 0, printed
    assert results(folder) == results(tmp_path / "whole")
    code, process = lesson("--steps", 30).run(folder, "--resume")
    assert code == 1
    assert "processes was 2 and is 1" in process.stderr
