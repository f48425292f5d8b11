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

from minti.checkpoints.run_state import RunState, check_alike, write_run_state
from minti.config import fits
from minti.distributed import world_size
from minti.files import one_line, shortened
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
            ValueError: it is of another run, and every difference is named; or something in it is missing or odd.
        """
        was, now = state.facts.get("identity"), self.identity()
        if not isinstance(was, dict) or not fits(state.step, int) or state.step < 0:
            raise ValueError("the checkpoint does not say of which run and step it is; remove it, and begin anew")
        different = [key for key in sorted(was.keys() | now) if was.get(key) != now.get(key) and key not in MAY_DIFFER]
        if different:
            pairs = [f"{key} was {was.get(key)} and is {now.get(key)}" for key in different]
            differences = "; ".join(shortened(pair, 300) for pair in pairs[:20])
            raise ValueError(f"the checkpoint is of another run: {differences}. Go on with the same, or begin anew")
        if state.step > self.wrapper.config.last_step:
            raise ValueError(
                f"the checkpoint is of step {state.step}, beyond the {self.wrapper.config.last_step} wanted"
            )
        try:
            check_alike(state, self.state(), rows="rows")
            self._take(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"lacks what a run needs ({one_line(error)}); remove it, and begin anew"
            raise ValueError(f"the checkpoint of step {state.step} {reason}") from None
        self.step = state.step

    def _take(self, state: RunState) -> None:
        """Everything in the state to its place."""
        rows, facts = self.wrapper.rows, state.facts
        rows.write(state.tensors["rows"])
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in state.tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                optimizer["state"].setdefault(int(number), {})[key] = rows.whole(value)
        self.optimizer.load_state_dict(optimizer)
        if isinstance(self.optimizer, torch.optim.AdamW):  # which would notice in the next step
            for values in self.optimizer.state.values():
                _ = [values[key] for key in ("step", "exp_avg", "exp_avg_sq")]
        last = facts["rates"]["last_epoch"]  # and nothing else of the schedule: it is the config's
        rates = [base * factor(last) for base, factor in zip(self.rates.base_lrs, self.rates.lr_lambdas)]
        taken = {"last_epoch": last, "_step_count": last + 1, "_last_lr": rates}
        self.rates.load_state_dict(self.rates.state_dict() | taken)
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        self.scale.load_state_dict(facts["scale"])
        self.progress.load_state_dict(state.tensors, facts["progress"], state.step)
        self.generator.set_state(state.tensors["generator"])


def save_checkpoint(wrapper: TrainingWrapper, folder: str | os.PathLike[str], keep: int = 3) -> Path:
    """Writes the state of the wrapper's run, between two steps of `textual_inversion`; the newest `keep` are kept.

    Raises:
        ValueError: no run has begun.
        OSError: it cannot be written; older ones are as they were.
    """
    if wrapper.run is None:
        raise ValueError("there is nothing to save yet: take a step of minti.textual_inversion first")
    return write_run_state(folder, wrapper.run.state(), keep)
