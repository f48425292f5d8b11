"""Training that could only waste time ends at once, and says why."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minti.model import StableDiffusion

MAX_LOST = 20  # steps in float16: torch begins with a scale of 2^16, and each halves it


class TrainingError(RuntimeError):
    """Training would go on but learn nothing."""


def check_step(
    model: StableDiffusion, step: str, loss: float, norm: float, batches: Sequence[object], scaler: torch.amp.GradScaler
) -> None:
    """Looks at a step, of that name, before it is taken: at its mean loss, and at the gradient's norm.

    Raises TrainingError: one is not finite (in float16 that halves the scale, and is an error only where this does not
    help), or there is no gradient.
    """
    finite = math.isfinite(loss) and math.isfinite(norm)
    if not finite and not (scaler.is_enabled() and scaler.get_scale() > 2.0 ** (16 - MAX_LOST)):
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        seen, culprit = ", ".join(map(str, batches)), model.not_finite()
        mend = f"so is {culprit}: fetch that file again" if culprit else "try a lower learning rate or float32"
        raise TrainingError(f"{what} at {step}, of {seen}; {mend}")
    if norm == 0:
        raise TrainingError(f"there is no gradient at {step}: nothing leads from it to the loss")


def check_values(name: str, steps: int, values: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    """Raises TrainingError: after so many steps the values are not finite, or have not moved in the first five."""
    if not is_finite(values):
        raise TrainingError(f"{name} is not finite after {steps} steps; try a lower learning rate")
    if steps == 5 and all(torch.equal(value, first[key]) for key, value in values.items()):
        raise TrainingError(f"after {steps} steps {name} has not moved; try a higher learning rate")


def is_finite(values: dict[str, Tensor]) -> bool:
    """Whether all numbers are finite."""
    return all(value.isfinite().all().item() for value in values.values())
