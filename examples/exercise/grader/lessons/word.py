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
    start = randn(5, 2) + 2
    ways = {"patched": mine.keep_the_rest, "not patched": lambda optimizer, weight, first: None}
    lines = {}
    for way, function in ways.items():
        seen = steps(function, 30)
        for which, rows in (("old", start[:3]), ("new", start[3:])):
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


def steps(function: Callable[..., None], count: int, rows: int = 5, first: int = 3) -> Seen:
    """A matrix, of which the rows from `first` on are new, after each step of AdamW with some weight decay."""
    weight = nn.Parameter(randn(rows, 2) + 2)
    optimizer, before = AdamW([weight], lr=0.1, weight_decay=0.1), steps_of_classes()
    writes = written_by(AdamW([nn.Parameter(randn(rows, 2))], weight_decay=0.1))
    try:
        function(optimizer, weight, first)
        others = steps_of_classes() == before
        hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        patched = "step" in vars(optimizer) or bool(hooked) or not others
        seen = {OTHERS: others, PATCHED: patched, WRITTEN: True, TAKEN: 0}
        for i in range(count):
            slope = randn(rows, 2, seed=i)
            slope[1] = 0  # a token that the prompts do not have
            optimizer.zero_grad()
            (slope * weight).sum().backward()  # so that a hook of the gradient's is called
            version = weight._version
            optimizer.step()
            seen[WRITTEN] &= weight._version - version > writes or has_a_view(optimizer.step, weight)
            seen[f"old rows after step {i + 1}"] = weight[:first].detach().clone()
            seen[f"new rows after step {i + 1}"] = weight[first:].detach().clone()
        seen[TAKEN] = int(optimizer.state[weight].get("step", 0))
    finally:
        for kind, step in before.items():
            if step:
                kind.step = step
            elif "step" in vars(kind):
                del kind.step
    return seen


def steps_of_classes() -> dict[type, Any]:
    """AdamW's own `step`, and those of the classes that it is made from."""
    return {kind: vars(kind).get("step") for kind in AdamW.__mro__[:-1]}


def probe(function: Callable[..., None]) -> Seen:
    """Two matrices, so that no number of rows can be written into the code."""
    another = {f"of another matrix, {key}": rows for key, rows in steps(function, 2, 6, 5).items() if "rows" in key}
    return steps(function, 3) | another


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
        Task(keep_the_rest, probe, TRICK, KEEP_THE_REST),
    ),
    image,
)
