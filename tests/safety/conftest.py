"""Scripts in processes of their own, many and quickly."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZYGOTE = Path(__file__).with_name("zygote.py")


@dataclass
class Process:
    """A script that runs."""

    workshop: "Workshop"
    pid: int
    out: Path

    def send(self, name):
        os.kill(self.pid, getattr(signal, name))

    def wait(self):
        """The exit code; that of a signal is negative."""
        return self.workshop.ask(wait=self.pid)

    def until_stopped(self):
        """Waits for a SIGSTOP to arrive."""
        deadline = time.monotonic() + 120
        while Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def stdout(self):
        return Path(f"{self.out}.out").read_text(encoding="utf-8")

    @property
    def stderr(self):
        return Path(f"{self.out}.err").read_text(encoding="utf-8")


class Workshop:
    """Forks scripts from one process that has done the imports."""

    def __init__(self, folder):
        self.folder, self.numbers = folder, itertools.count()
        variables = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        path = f"{ROOT / 'examples'}:{ROOT}"
        self.zygote = subprocess.Popen(
            [sys.executable, ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        assert self.zygote.stdout.readline() == "ready\n"

    def ask(self, **order):
        self.zygote.stdin.write(json.dumps(order) + "\n")
        self.zygote.stdin.flush()
        return int(self.zygote.stdout.readline())

    def start(self, script, *args, faults=()):
        """Begins a script; `faults` are names and arguments of `faults.py`."""
        out = self.folder / str(next(self.numbers))
        pid = self.ask(script=script, args=list(map(str, args)), faults=faults, out=str(out))
        return Process(self, pid, out)

    def run(self, script, *args, faults=()):
        """A script from beginning to end: its exit code, and the process."""
        process = self.start(script, *args, faults=faults)
        return process.wait(), process


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.zygote.communicate()


@dataclass
class Lesson:
    """A short training run on the tiny model, by the script, as often as one likes with the same settings."""

    workshop: Workshop
    options: tuple

    def start(self, folder, *more, faults=()):
        return self.workshop.start("train.py", "--output", folder, *self.options, *more, faults=faults)

    def run(self, folder, *more, faults=()):
        process = self.start(folder, *more, faults=faults)
        return process.wait(), process


@pytest.fixture(scope="session")
def lesson(workshop, tiny_folder):
    """Makes a `Lesson`: the tiny model, twelve steps, a checkpoint after every other, a page of a few images."""

    def make(*options):
        word = ("--placeholder", "../../<a/b>", "--initializer", "toy")  # a name that may be taken for a path
        few = ("--sample-steps", 1, "--columns", 1, "--prompts", "a {}", "--quiet", "--checkpoint-every", 2)
        how = ("--model", tiny_folder, "--dtype", "float32", "--steps", 12, "--batch-size", 2)
        return Lesson(workshop, (*how, *word, *few, *options))

    return make


@pytest.fixture(scope="session")
def whole(lesson, tmp_path_factory):
    """The output folder of a lesson that nobody interrupted, and that did not ask for the network."""
    folder = tmp_path_factory.mktemp("whole") / "beside" / "outputs"
    code, process = lesson().run(folder, faults=[("no_network",)])
    assert (code, process.stderr) == (0, "")
    return folder


@pytest.fixture(scope="session")
def results():
    """What must not depend on whether the run was interrupted, of an output folder."""
    names = ("learned_embeds.safetensors", "losses.csv", "page.png")
    return lambda folder: [(folder / name).read_bytes() for name in names]
