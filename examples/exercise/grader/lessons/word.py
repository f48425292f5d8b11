"""Part 6: how the known mistakes with a new word and its rows are recognised (exercise E4, task 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from exercise.grader.part import Mistake, Part, Task
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


def patched(around: Callable[[Callable, nn.Parameter, int, Tensor], None], alias: bool = False) -> Callable[..., None]:
    """E4's patch with something else in it; `around` takes a step, the matrix, `first` and what is called a copy."""

    def function(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
        copy, step = weight.detach() if alias else weight.detach().clone(), optimizer.step

        @torch.no_grad()
        def patched_step(*args: Any, **options: Any) -> None:
            around(lambda: step(*args, **options), weight, first, copy)

        optimizer.step = patched_step

    return function


def back(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    weight[:first] = copy[:first]


def gradient_only(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    weight.grad[:first] = 0
    step()


def too_early(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    weight[:first] = copy[:first]
    step()


def everything(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    weight.copy_(copy)


def wrong_side(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    weight[first:] = copy[first:]


def one_too_many(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    weight[: first + 1] = copy[: first + 1]


def one_too_few(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    weight[: first - 1] = copy[: first - 1]


def steps(function: Callable[..., None], count: int = 3) -> list[Tensor]:
    """A matrix of eight rows, whose last two are new, after each step of AdamW with some weight decay."""
    weight = nn.Parameter(randn(8, 4) + 2)
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.1)
    function(optimizer, weight, 6)
    seen = []
    for i in range(count):
        slope = randn(8, 4, seed=i) * torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 1])[:, None]
        optimizer.zero_grad()
        (slope * weight).sum().backward()  # so that a hook of the gradient's is called
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


def image(mine: Any) -> Image.Image:
    """How far the rows of a matrix have moved, step by step, with the learner's patch and without."""
    start = randn(8, 4) + 2
    ways = {"patched": mine.keep_the_rest, "not patched": lambda optimizer, weight, first: None}
    lines = {}
    for way, function in ways.items():
        moved = torch.stack([(weight - start).norm(dim=1) for weight in steps(function, 30)])  # steps 8
        lines |= {f"{way}: old rows": moved[:, :6].mean(1).tolist(), f"{way}: new rows": moved[:, 6:].mean(1).tolist()}
    return chart("How far rows move", lines, names=("step", "distance"))


ROWS, TRICK = "`002` 16; `000`, task 2, second item", '`000`, task 2, "The tricky part"'
PART = Part(
    (
        Task(
            extended,
            lambda function: function(randn(8, 4), 3, 2),
            ROWS,
            (
                Mistake(
                    "the new rows before the old ones",
                    lambda weight, initializer_id, num_vectors: torch.cat(
                        [weight[initializer_id].expand(num_vectors, -1), weight]
                    ),
                    "Which rows do the old tokens' ids refer to now?",
                    ROWS,
                ),
                Mistake(
                    "the new rows are zero",
                    lambda weight, initializer_id, num_vectors: torch.cat([weight, weight.new_zeros(num_vectors, 4)]),
                    "What is `initializer_id` for?",
                    ROWS,
                ),
                Mistake(
                    "one new row, whatever `num_vectors` says",
                    lambda weight, initializer_id, num_vectors: torch.cat([weight, weight[initializer_id][None]]),
                    "A word may have several tokens, each with a row.",
                    ROWS,
                ),
            ),
        ),
        Task(
            keep_the_rest,
            steps,
            TRICK,
            (
                Mistake(
                    "only the gradient zeroed, so that weight decay moves the other rows",
                    patched(gradient_only),
                    "What does AdamW's weight decay do to rows without a gradient?",
                    TRICK,
                ),
                Mistake(
                    "nothing is put back, all rows move (is the copy a copy, does `optimizer.step` call yours?)",
                    patched(back, alias=True),
                    "`detach` gives another view of the same numbers.",
                    TRICK,
                ),
                Mistake(
                    "the old rows put back before the step, not after it",
                    patched(too_early),
                    "What does the matrix hold when training ends?",
                    TRICK,
                ),
                Mistake(
                    "the new rows put back as well, or no step taken at all: nothing is learned",
                    patched(everything),
                    "From which row on may the matrix change, and does the optimizer's own step still run?",
                    TRICK,
                ),
                Mistake(
                    "the new rows put back, and the old ones left to move",
                    patched(wrong_side),
                    "Which side of `first` is the new word's?",
                    TRICK,
                ),
                Mistake(
                    "the first new row put back: an index off by one",
                    patched(one_too_many),
                    "`first` is the id of a new token.",
                    TRICK,
                ),
                Mistake(
                    "the last old row not put back: an index off by one",
                    patched(one_too_few),
                    "The slice `[:n]` ends before n.",
                    TRICK,
                ),
            ),
        ),
    ),
    image,
)
