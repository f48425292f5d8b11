"""What a run consists of, and its state: all that is needed to go on as if it had never been interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minti.checkpoints.run_state import RunState
from minti.learning.pictures import Concept
from minti.learning.precision import GradientScale
from minti.learning.preparation import learning_rates, prepare_for_textual_inversion
from minti.learning.progress import Progress
from minti.learning.settings import TrainingWrapper
from minti.machine.messages import shown
from minti.machine.processes import world_size

ADAM = ("optimizer.0.exp_avg", "optimizer.0.exp_avg_sq")
MAY_DIFFER = ("steps", "max_steps")  # a run may be made longer


class Run:
    """A run of textual inversion: its fixed parts, and those that change from step to step.

    Attributes:
        concept: the pictures.
        generator: of everything random.
        optimizer, rates, scale, progress: as their names say.
        step, drawn: how many steps have been taken; (picture's number, timestep) pairs of the last.
        whole: whether the last of them is done; only then is there a state to save.
        last_rows: once the loop has ended, the rows of its last step, where the best have taken their place.
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
        self.whole, self.last_rows, self.drawn = True, None, []

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on: settings, model, pictures, optimizer, how many processes."""
        config = asdict(self.wrapper.config) | {
            "learning_rate": self.wrapper.learning_rate,
            "batch_size": self.wrapper.batch_size,
            "templates": list(self.wrapper.templates),
        }
        return config | {
            "model": self.wrapper.model.fingerprint,
            "dtype": str(self.wrapper.model.dtype),
            "pictures": self.concept.fingerprint,
            "optimizer": type(self.optimizer).__name__,
            "processes": world_size(),
        }

    def state(self) -> RunState:
        """A copy of all that changes.

        Raises:
            ValueError: an error or Ctrl-C has ended the loop within a step.
        """
        if not self.whole:
            raise ValueError(f"the run ended in the middle of step {self.step + 1}; go on with the checkpoint before")
        optimizer = self.optimizer.state_dict()
        rows = self.wrapper.rows.values if self.last_rows is None else self.last_rows
        tensors = {"rows": rows, "generator": self.generator.get_state()}
        for number, values in optimizer["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{number}.{name}"] = self.wrapper.rows.part(value)
        progress_tensors, progress = self.progress.state_dict()
        facts = {"identity": self.identity(), "rates": self.rates.last_epoch, "scale": self.scale.state_dict()}
        facts["progress"] = progress
        return RunState(self.step, {k: v.detach().clone() for k, v in (tensors | progress_tensors).items()}, facts)

    def restore(self, state: RunState) -> None:
        """Goes on where the state was taken.

        Raises:
            ValueError: it is of another run, or does not fit one; names every difference.
        """
        with state.reading():
            state.compare(self.identity(), MAY_DIFFER)
            if state.step > (wanted := self.wrapper.config.last_step):
                raise ValueError(f"the checkpoint is of step {state.step}, beyond the {wanted} wanted")
            state.check_facts(self.state().facts)
            rows, moments, taken = self.wrapper.rows, (), state.step - state.facts["scale"]["lost"]
            if isinstance(self.optimizer, torch.optim.AdamW):
                moments = tuple(name for name in ADAM if taken > 0 or name in state.tensors)
                count = state.tensors["optimizer.0.step"] if moments else torch.tensor(0.0)
                if not torch.equal(count, torch.tensor(float(taken))):
                    raise RuntimeError(f"the optimizer has taken {shown(count)} of {taken} steps")
            state.check(("rows", "best_rows", *moments), rows.values.shape)
            optimizer = self.optimizer.state_dict() | {"state": {}}
            for name, value in state.tensors.items():
                if name.startswith("optimizer."):
                    _, number, key = name.split(".")
                    optimizer["state"].setdefault(int(number), {})[key] = rows.whole(value)
            self.generator.set_state(state.tensors["generator"])
            self.optimizer.load_state_dict(optimizer)
            self.rates = learning_rates(self.wrapper, self.optimizer, state.facts["rates"])
            self.scale.load_state_dict(state.facts["scale"])
            self.progress.load_state_dict(state.tensors, state.facts["progress"], state.step)
            rows.write(state.tensors["rows"])
            self.step = state.step

    def end(self) -> None:
        """Goes back to the best rows; `state` stays that of the last step."""
        self.last_rows = self.wrapper.rows.values.detach().clone()
        self.progress.keep_best()
