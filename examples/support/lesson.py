"""A word while it is learned, and what a page says of it."""

from support.charts import chart

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

import minti


@dataclass
class Lesson:
    """A run of textual inversion that can be stopped and continued.

    Attributes:
        states: of the steps so far.
        noise: from which the word is sampled along the way, (1, c, h, w).
        state: "learning", "stopped" or "learned".
    """

    wrapper: minti.TrainingWrapper
    steps: Iterator[minti.TrainingState]
    noise: Tensor
    states: list[minti.TrainingState] = field(default_factory=list)
    state: str = "learning"

    def losses(self) -> list[tuple[int, float]]:
        """(step, validation loss) wherever it was evaluated, before the first step too."""
        seen = [(state.step, state.validation_loss) for state in self.states if state.validation_loss is not None]
        return [(0, self.states[0].initializer_loss), *seen]

    def curve(self) -> str:
        """The validation loss between its two levels, as an HTML image."""
        levels = {"before": self.states[0].initializer_loss, "the empty prompt": self.states[0].empty_loss}
        return chart("Validation loss", "step", {"the word": self.losses()}, levels)

    def said(self) -> str:
        """How far it is, in a sentence."""
        word, losses = self.wrapper.config.placeholder_token, self.losses()
        step, best = min(losses, key=lambda at: at[1])
        said = f"{self.state} `{word}`: {self.states[-1].step} steps; "
        return said + f"validation loss {best:.4f} at step {step}, {losses[0][1]:.4f} before. Say `{word}` in Draw."
