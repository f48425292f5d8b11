"""Directional textual inversion (arXiv 2512.13672): an embedding vector keeps its length, and learns its direction.

In a pre-norm transformer, LayerNorm(m v + p) loses the position p as 1 / m, and every residual update turns a long
vector less: a word that has grown long no longer listens to the rest of its prompt.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from minti.personalization.vector_table import table_of
from minti.wrapper import TrainingWrapper

LEARNING_RATE = 0.1  # radians a step


class SphericalSGD(Optimizer):
    """Riemannian gradient descent on the unit sphere, for rows w = m v with |v| = 1 (arXiv 2512.13672, algorithm 1).

    g = m dL/dw - kappa mu;  g <- g - (v . g) v;  v <- v - lr g / |g|;  v <- v / |v|

    rows: which rows of the parameters, (k, d), are learned. kappa: concentration of the von Mises-Fisher prior around
    `mu`, the directions that they have now. lr: radians a step.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, kappa: float = 0.0, rows: Any = ...):
        super().__init__(params, {"lr": lr, "kappa": kappa})
        self.rows = rows
        self.mu = [unit(p.detach()[rows]) for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Turns every row by at most `lr`, towards less loss; its length stays."""
        means = iter(self.mu)
        for group in self.param_groups:
            for parameter, mu in zip(group["params"], means):
                if parameter.grad is None:
                    continue
                row = parameter[self.rows]  # k d, a view
                length, v = row.norm(dim=1, keepdim=True), unit(row)  # (k, 1), (k, d)
                g = length * parameter.grad[self.rows] - group["kappa"] * mu.to(row)
                g = torch.where(parameter.grad[self.rows].any(dim=1, keepdim=True), g, 0.0)  # else not in the batch
                g = g - (v * g).sum(dim=1, keepdim=True) * v
                row.copy_(length * unit(v - group["lr"] * unit(g)))


def unit(rows: Tensor) -> Tensor:
    """Rows (k, d) over their lengths; a row of zeros stays."""
    return F.normalize(rows, dim=1, eps=1e-30)


@torch.no_grad()
def limit(rows: Tensor, longest: float) -> None:
    """Shortens rows (k, d), in place, to a length of at most `longest`; again and again it changes nothing."""
    rows.div_(F.threshold(rows.norm(dim=1, keepdim=True) / longest, 1.00001, 1.0))


@torch.no_grad()
def fix(rows: Tensor, length: float) -> None:
    """Gives rows (k, d), in place, this length; where they have it to six digits, they stay as they are."""
    ratio = rows.norm(dim=1, keepdim=True) / length
    rows.div_(torch.where((ratio - 1).abs() < 1e-6, 1.0, ratio))


def word_optimizer(wrapper: TrainingWrapper) -> Optimizer:
    """The optimizer of a word whose config says how long its vectors are; from now on they are kept so."""
    config, model, unit_length = wrapper.config, wrapper.model, wrapper.vocabulary_norm
    if config.has_table:
        wrapper.embedding = model.learning[config.placeholder_token] = table_of(wrapper)
    embedding = wrapper.embedding
    length = config.row_norm or (1.0 if config.directional else None)
    if length is not None and not embedding.values.any(dim=1).all():
        raise ValueError("the word starts from a vector of zeros, which has no direction; choose another initializer")
    if length is not None:
        embedding.constrain = partial(fix, length=length * unit_length)
    elif config.max_row_norm is not None:
        embedding.constrain = partial(limit, longest=config.max_row_norm * unit_length)
    embedding.after_step(model)
    if config.directional:
        if config.learning_rate is None:
            wrapper.learning_rate = LEARNING_RATE
        return SphericalSGD(embedding.trainable(), wrapper.learning_rate, config.kappa, embedding.own)
    return AdamW(embedding.trainable(), lr=wrapper.learning_rate, weight_decay=config.weight_decay)
