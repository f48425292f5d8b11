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


def has_levelled_off(losses: Sequence[float], window: int = 10, variance: float = 0.02, gain: float = 0.05) -> bool:
    """Whether the curve of the fixed loss has come to its end, by one of two rules.

    DVAR ("Is This Loss Informative?", arXiv 2302.04841, section 4): it varies little any more,

        Var(last `window` losses) < `variance` * Var(all losses)

    since while it falls, its last values vary about as much as all do. Where it falls within an evaluation or two, all
    vary no more than the last, and the rule never holds. So the other: the last `window` have not become better than
    those before by `gain`, a share of the whole fall.
    """
    if len(losses) < window + 2:
        return False
    varies_little = np.var(losses[-window:]) < variance * np.var(losses)
    gained, fallen = min(losses[:-window]) - min(losses[-window:]), losses[0] - min(losses)
    return bool(varies_little or gained < gain * fallen)
