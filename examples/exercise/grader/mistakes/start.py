"""Part 9: what often goes wrong with a LoRA's first numbers. What they are like is compared, not the numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exercise.grader.part import Mistake
from exercise.grader.seen import Function

SHAPES, RANK, SIZE = "the shapes of A and B", "the rank of A", "A's numbers are not too large"
A_ZERO, B_ZERO, DIFFERENT = "A is zero", "B is zero", "A's numbers differ"
SAME, OTHER = "the same seed gives the same A", "another seed gives another A"
NEXT = "a generator gives another A the next time"


def shaped(a: Callable[..., tuple], b: Callable[..., tuple] = lambda r, i, o: (o, r)) -> Function:
    """A and B with other shapes: functions of rank, d_in and d_out."""
    return lambda r, i, o, generator: (torch.randn(a(r, i, o), generator=generator), torch.zeros(b(r, i, o)))


def made(
    a: Callable[[tuple[int, int], torch.Generator], Tensor],
    b: Callable[[tuple[int, int]], Tensor] = torch.zeros,
) -> Function:
    return lambda r, i, o, generator: (a((r, i), generator), b((o, r)))


def rand(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


START = (
    Mistake(
        "returns B, A; expected A, B",
        shaped(lambda r, i, o: (o, r), lambda r, i, o: (r, i)),
        "In which order are they in the function's text?",
        by=(SHAPES,),
    ),
    Mistake(
        "the shapes of A and B exchanged",
        shaped(lambda r, i, o: (i, r), lambda r, i, o: (r, o)),
        "A weight has a row for each output, as in nn.Linear.",
        '`001`, "Key Idea: Decompose the weight update"',
        by=(SHAPES,),
    ),
    Mistake(
        "d_in and d_out exchanged",
        (
            shaped(lambda r, i, o: (r, o), lambda r, i, o: (i, r)),
            shaped(lambda r, i, o: (r, o)),
            shaped(lambda r, i, o: (r, i), lambda r, i, o: (i, r)),
        ),
        "Which of the two does the layer's input meet first?",
        by=(SHAPES,),
    ),
    Mistake(
        "rows and columns of one of the two exchanged",
        (shaped(lambda r, i, o: (i, r)), shaped(lambda r, i, o: (r, i), lambda r, i, o: (r, o))),
        "A weight has a row for each output, as in nn.Linear.",
        by=(SHAPES,),
    ),
    Mistake(
        "the weight's whole shape, where the rank belongs",
        (
            shaped(lambda r, i, o: (o, i), lambda r, i, o: (o, i)),
            shaped(lambda r, i, o: (i, i), lambda r, i, o: (o, o)),
        ),
        "What makes the two matrices thin?",
        by=(SHAPES,),
    ),
    Mistake(
        "A and B both zero, so that neither ever gets a gradient",
        made(lambda shape, g: torch.zeros(shape)),
        "The gradient of B has A in it, and that of A has B.",
        by=(A_ZERO, B_ZERO, SHAPES),
    ),
    Mistake(
        "A zero and B random, the other way round",
        made(lambda shape, g: torch.zeros(shape), torch.ones),
        "Both start with the unchanged model, but which of the two is zero in the paper and in files?",
        by=(A_ZERO, B_ZERO, SHAPES),
    ),
    Mistake(
        "A and B both random, so that the model does not start unchanged",
        made(rand, torch.ones),
        "What should B A be before the first step?",
        by=(B_ZERO, SHAPES),
    ),
    Mistake(
        "A the same number everywhere: not random",
        made(lambda shape, g: torch.ones(shape)),
        "If all rows of A are alike, what rank has B A, now and after every step?",
        by=(DIFFERENT, SHAPES),
    ),
    Mistake(
        "A drawn without the generator that is given",
        made(lambda shape, g: torch.randn(shape)),
        "Would another run with the same seed start with the same A?",
        "the argument `generator`",
        by=(SAME, SHAPES),
    ),
    Mistake(
        "the same A from every generator",
        (
            made(lambda shape, g: torch.eye(*shape)),
            made(lambda shape, g: rand(shape, torch.Generator().manual_seed(0))),
        ),
        "What is the argument `generator` for?",
        "the argument `generator`",
        by=(OTHER, SHAPES),
    ),
    Mistake(
        "the same A at every call: the generator started anew",
        made(lambda shape, g: rand(shape, torch.Generator().manual_seed(g.initial_seed()))),
        "A model has many layers: should all of them start with the same A?",
        "the argument `generator`",
        by=(NEXT, SHAPES),
    ),
    Mistake(
        "the rows of A all alike",
        made(lambda shape, g: rand((1, shape[1]), g).expand(shape)),
        "What rank has B A, now and after every step?",
        by=(RANK, SHAPES),
    ),
    Mistake(
        "A too large",
        made(lambda shape, g: 100 * rand(shape, g)),
        "The gradient of B has A as a factor: how large would B's first step be?",
        "the text of `start`",
        by=(SIZE, SHAPES),
    ),
)
