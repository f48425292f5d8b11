"""What a run consists of, and its state: all that is needed to go on as if it had never been interrupted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minti.checkpoints.run_state import RunState, write_run_state
from minti.distributed import world_size
from minti.learning.pictures import Concept
from minti.learning.precision import GradientScale
from minti.learning.preparation import learning_rates, prepare_for_textual_inversion
from minti.learning.progress import Progress
from minti.learning.settings import TrainingWrapper

MAY_DIFFER = ("steps", "max_steps")  # a run may be made longer


class Run:
    """A run of textual inversion: its fixed parts, and those that change from step to step.

    Attributes:
        concept: the pictures.
        generator: of everything random.
        optimizer, rates, scale, progress: as their names say.
        step: how many steps have been taken.
    """

    def __init__(
        self,
        wrapper: TrainingWrapper,
        images: Sequence[Image.Image] | Tensor,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self.wrapper, self.step = wrapper, 0
        self.generator = torch.Generator().manual_seed(wrapper.config.seed)
        self.concept = Concept(wrapper.model, images, wrapper.config.horizontal_flip)
        self.optimizer = optimizer or prepare_for_textual_inversion(wrapper)
        self.rates = learning_rates(wrapper, self.optimizer)
        self.scale = GradientScale(wrapper.model, wrapper.rows, self.optimizer)
        self.progress = Progress(wrapper, self.concept, self.generator)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: every setting, the model, the pictures, how many processes."""
        config = asdict(self.wrapper.config) | {
            "learning_rate": self.wrapper.learning_rate,
            "batch_size": self.wrapper.batch_size,
            "templates": list(self.wrapper.templates),
        }
        return config | {
            "model": self.wrapper.model.fingerprint,
            "dtype": str(self.wrapper.model.dtype),
            "pictures": self.concept.fingerprint,
            "processes": world_size(),
        }

    def state(self) -> RunState:
        """A copy of all that changes."""
        optimizer = self.optimizer.state_dict()
        tensors = {"rows": self.wrapper.rows.values, "generator": self.generator.get_state()}
        for number, values in optimizer["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{number}.{name}"] = self.wrapper.rows.part(value)
        progress_tensors, progress = self.progress.state_dict()
        facts = {
            "identity": self.identity(),
            "rates": self.rates.state_dict(),
            "scale": self.scale.state_dict(),
            "progress": progress,
        }
        return RunState(self.step, {k: v.detach().clone() for k, v in (tensors | progress_tensors).items()}, facts)

    def restore(self, state: RunState) -> None:
        """Goes on where the state was taken.

        Raises:
            ValueError: it is of another run; names every difference.
        """
        was, now = state.facts["identity"], self.identity()
        different = [key for key in sorted(was.keys() | now) if was.get(key) != now.get(key) and key not in MAY_DIFFER]
        if different:
            differences = "; ".join(f"{key} was {was.get(key)} and is {now.get(key)}" for key in different)
            raise ValueError(f"the checkpoint is of another run: {differences}. Go on with the same, or begin anew")
        if state.step > self.wrapper.config.last_step:
            raise ValueError(
                f"the checkpoint is of step {state.step}, beyond the {self.wrapper.config.last_step} wanted"
            )
        rows = self.wrapper.rows
        rows.write(state.tensors["rows"])
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in state.tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                optimizer["state"].setdefault(int(number), {})[key] = rows.whole(value)
        self.optimizer.load_state_dict(optimizer)
        self.rates.load_state_dict(state.facts["rates"] | {"lr_lambdas": self.rates.state_dict()["lr_lambdas"]})
        for group, rate in zip(self.optimizer.param_groups, self.rates.get_last_lr()):
            group["lr"] = rate
        self.scale.load_state_dict(state.facts["scale"])
        self.progress.load_state_dict(state.tensors, state.facts["progress"], state.step)
        self.generator.set_state(state.tensors["generator"])
        self.step = state.step


def save_checkpoint(wrapper: TrainingWrapper, folder: str | os.PathLike[str], keep: int = 3) -> Path:
    """Writes the state of the wrapper's run, between two steps of `textual_inversion`; the newest `keep` are kept.

    Raises:
        ValueError: no run has begun.
        OSError: it cannot be written; older ones are as they were.
    """
    if wrapper.run is None:
        raise ValueError("there is nothing to save yet: take a step of minti.textual_inversion first")
    return write_run_state(folder, wrapper.run.state(), keep)
