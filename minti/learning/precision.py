"""float16: gradients so small that they would vanish are scaled up, and a step where they overflow is lost.

Questions `003`, 28 ("loss scaling"). In float32 and bfloat16 nothing here does anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minti.learning.rows import TrainableRows
from minti.model import StableDiffusion

MAX_LOST = 20  # steps in a row that may be lost while a scale is looked for


class GradientScale:
    """The scale is torch's own: it halves where gradients overflow, and grows again where they long have not.

    Attributes:
        lost: how many steps have been lost in all.
    """

    def __init__(self, model: StableDiffusion, rows: TrainableRows, optimizer: torch.optim.Optimizer):
        self.rows, self.optimizer, self.lost, self._in_a_row = rows, optimizer, 0, 0
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)

    def state_dict(self) -> dict[str, Any]:
        """The scale and its counts."""
        return {"scaler": self.scaler.state_dict(), "lost": self.lost, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.lost, self._in_a_row = state["lost"], state["in_a_row"]

    def backward(self, loss: Tensor) -> None:
        """Adds the scaled loss's gradient."""
        self.scaler.scale(loss).backward()

    def unscale(self) -> bool:
        """Brings the gradient back to its true size.

        Returns:
            Whether it can be used. False where it has overflowed: the step is lost. After MAX_LOST lost steps in a row
            True all the same, so that the check that follows fails and says why.
        """
        if not self.scaler.is_enabled():
            return True
        self.scaler.unscale_(self.optimizer)
        # As the scaler sees it: with E4's recipe the parameter is the whole matrix.
        gradients = [parameter.grad for parameter in self.rows.parameters if parameter.grad is not None]
        overflow = not all(gradient.isfinite().all() for gradient in gradients)
        self._in_a_row = self._in_a_row + 1 if overflow and self._in_a_row < MAX_LOST else 0
        self.lost += self._in_a_row > 0
        return self._in_a_row == 0

    def step(self) -> None:
        """An optimizer step, unless the gradient has overflowed; then the scale halves."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
