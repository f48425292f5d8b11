"""When is a word learned? Rules about the curve of the fixed loss, and what computing it may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# A training step goes forward and backward through the frozen UNet: about as long as this many forward passes.
STEP_COST = 2.5


def evaluation_interval(size: int, batch_size: int, share: float = 0.05) -> int:
    """Every how many training steps a fixed set may be evaluated.

    Args:
        size: how many pictures an evaluation puts through the UNet.
        batch_size: how many pictures a training step puts through it.
        share: of the run's time that evaluations may take.
    """
    return math.ceil(size / (share * batch_size * STEP_COST))


def has_levelled_off(losses: Sequence[float], window: int = 10, threshold: float = 0.02) -> bool:
    """DVAR ("Is This Loss Informative?", arXiv 2302.04841, section 4): stop when the curve varies little any more.

        Var(last `window` losses) < threshold * Var(all losses)

    While the curve falls, its last values vary about as much as all do.
    """
    if len(losses) < window + 2:
        return False
    return bool(np.var(losses[-window:]) < threshold * np.var(losses))
