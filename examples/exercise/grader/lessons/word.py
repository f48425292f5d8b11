"""Part 6: how the known mistakes with a new word and its rows are recognised (exercise E4, task 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from exercise.grader.mistakes.rows import EXTENDED, ROWS
from exercise.grader.mistakes.step import KEEP_THE_REST, OTHERS, PATCHED, TAKEN, TRICK, WRITTEN
from exercise.grader.part import Part, Task
from exercise.grader.seen import Seen, calling
from exercise.grader.world import chart, randn
from minti.textual_inversion import MaskedEmbedding


def extended(weight: Tensor, initializer_id: int, num_vectors: int) -> Tensor:
    # as `TrainingWrapper.initial_vectors` and `StableDiffusion.add_word` do
    return torch.cat([weight, weight[initializer_id].expand(num_vectors, -1)])


def keep_the_rest(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    adapter = MaskedEmbedding(nn.Embedding(*weight.shape, _weight=weight), range(first, len(weight)))
    # as `TrainingWrapper.attach` does
    optimizer.register_step_pre_hook(lambda *_: adapter.before_step(None, optimizer))
    optimizer.register_step_post_hook(lambda *_: adapter.after_step(None))


def image(mine: Any) -> Image.Image:
    """How far the rows of a matrix have moved, step by step, with the learner's patch and without."""
    start = randn(8, 4) + 2
    ways = {"patched": mine.keep_the_rest, "not patched": lambda optimizer, weight, first: None}
    lines = {}
    for way, function in ways.items():
        seen = steps(function, 30)
        for which, rows in (("old", start[:6]), ("new", start[6:])):
            after = [seen[f"{which} rows after step {i}"] for i in range(1, 31)]
            lines[f"{way}: {which} rows"] = [(each - rows).norm(dim=1).mean().item() for each in after]
    return chart("How far rows move", lines, names=("step", "distance"))


def written_by(optimizer: Optimizer) -> int:
    """How often the optimizer's own step writes into its matrix."""
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad, before = torch.ones_like(weight), weight._version
    optimizer.step()
    return weight._version - before


def has_a_view(step: Callable, weight: Tensor) -> bool:
    """What the patch holds has `weight` twice, under two names: one was meant to be a copy."""

    def cells(function: Any, depth: int = 4) -> Iterator[Any]:
        for cell in getattr(function, "__closure__", None) or ():
            yield cell
            if depth:
                yield from cells(cell.cell_contents, depth - 1)

    held = {id(cell): cell.cell_contents for cell in cells(step)}.values()
    return sum(isinstance(each, Tensor) and each.data_ptr() == weight.data_ptr() for each in held) > 1


def steps(function: Callable[..., None], count: int) -> Seen:
    """A matrix of eight rows, whose last two are new, after each step of AdamW with some weight decay."""
    weight = nn.Parameter(randn(8, 4) + 2)
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.1)
    writes = written_by(AdamW([nn.Parameter(randn(8, 4))], weight_decay=0.1))
    classes = [(kind, dict(vars(kind))) for kind in AdamW.__mro__[:-1]]
    seen, hooks = {}, [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]
    try:
        function(optimizer, weight, 6)
        others = all(vars(kind).get("step") is before.get("step") for kind, before in classes)
        hooked = hooks != [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]
        seen = {OTHERS: others, PATCHED: "step" in vars(optimizer) or hooked or not others, WRITTEN: True, TAKEN: 0}
        for i in range(count):
            slope = randn(8, 4, seed=i) * torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 1])[:, None]
            optimizer.zero_grad()
            (slope * weight).sum().backward()  # so that a hook of the gradient's is called
            version = weight._version
            optimizer.step()
            seen[WRITTEN] &= weight._version - version > writes or has_a_view(optimizer.step, weight)
            seen[f"old rows after step {i + 1}"] = weight[:6].detach().clone()
            seen[f"new rows after step {i + 1}"] = weight[6:].detach().clone()
        seen[TAKEN] = int(optimizer.state[weight].get("step", 0))
    finally:
        for kind, before in classes:
            if "step" in before:
                kind.step = before["step"]
            elif "step" in vars(kind):
                del kind.step
    return seen


PART = Part(
    (
        Task(
            extended,
            calling(
                {"weight": torch.tensor([[1.0, 2], [3, 4], [5, 6]]), "initializer_id": 1, "num_vectors": 2},
                {"weight": randn(8, 4), "initializer_id": 3, "num_vectors": 1},
                {"weight": randn(8, 4), "initializer_id": 0, "num_vectors": 3},
            ),
            ROWS,
            EXTENDED,
        ),
        Task(keep_the_rest, lambda function: steps(function, 3), TRICK, KEEP_THE_REST),
    ),
    image,
)
