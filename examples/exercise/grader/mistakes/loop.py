"""Part 7: what often goes wrong with the loop. What is called, and how often, is compared first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from exercise.grader.part import Mistake
from exercise.grader.seen import Function

ALGORITHM = "`002` 4.4, training; `001`, Algorithm 1"
TASK = '`000`, task 3a; `003` 27, "Initialize Gradients" to "Weight Update"'
DRAWS, LOSSES, BACKWARDS, STEPS = (
    f"how often {what} in 5 steps"
    for what in ("`draw` is called", "`loss` is called", "there is a gradient", "the optimizer takes a step")
)
ORDER, NUMBERS, LEARNED = "?in which order", "the losses of 5 steps", "what was learned"
COUNTS = (DRAWS, LOSSES, BACKWARDS, STEPS)


def loop(
    each: str,
    before: str = "",
    after: str = "",
    steps: Callable[[int], int] = lambda n: n,
    noted: Callable[[Tensor, list], Any] = lambda value, noted: value.item(),
    returned: Callable[[list], Any] = lambda noted: noted,
    changed: Callable[[Tensor, int], Tensor] = lambda value, n: value,
) -> Function:
    """A loop with these actions in each step: draw, loss, zero, backward, step, note; and some before and after it."""

    def learn(n: int, draw: Callable, loss: Callable, optimizer: Optimizer) -> Any:
        batch, value, notes = None, None, []
        for action in (before, *[each] * steps(n), after):
            for name in action.split():
                if name == "draw":
                    batch = draw()
                elif name == "loss":
                    value = loss(batch)
                elif name == "note":
                    notes.append(noted(value, notes))
                elif name == "backward":
                    changed(value, n).backward()
                else:
                    {"zero": optimizer.zero_grad, "step": optimizer.step}[name]()
        return returned(notes)

    return learn


RIGHT = "draw loss zero backward step note"
LEARN = (
    Mistake(
        "a function handed to `loss`, where a batch belongs",
        lambda steps, draw, loss, optimizer: loss(draw),
        "What is `draw`, and what is `draw()`?",
        "the argument `draw`",
    ),
    Mistake(
        "gradients switched off, or the loss cut off from what learns",
        loop(RIGHT, changed=lambda value, n: value.detach()),
        "From which tensor does `backward` go back?",
    ),
    Mistake(
        "`backward` a second time on the same loss",
        loop("draw loss zero backward step backward note"),
        "After `backward` the graph is gone. How often does a step need it?",
    ),
    Mistake(
        "the loss handed to the optimizer's step",
        lambda steps, draw, loss, optimizer: optimizer.step(loss(draw())),
        "How does the optimizer know the gradient? It is in `.grad`, once something has put it there.",
    ),
    Mistake(
        "nothing is done at all",
        lambda *_: [],
        "What stands in this part's first line?",
        by=COUNTS,
    ),
    Mistake(
        "only one step: the function returns within the loop",
        loop(RIGHT, steps=lambda n: 1),
        "Where does the loop end, and where is the return?",
        by=COUNTS,
    ),
    Mistake(
        "`backward` forgotten",
        (loop("draw loss zero step note"), loop("draw loss note", after="step")),
        "Which gradient does the optimizer see?",
        by=(BACKWARDS,),
    ),
    Mistake(
        "the optimizer's step forgotten",
        loop("draw loss zero backward note"),
        "Who changes what is learned?",
        by=(STEPS,),
    ),
    Mistake(
        "one optimizer step at the end, where each batch has its own",
        (loop("draw loss backward note", after="step"), loop("draw loss note", after="backward step")),
        "How often should the numbers change?",
        by=(STEPS, DRAWS),
    ),
    Mistake(
        "a step too many", loop(RIGHT, steps=lambda n: n + 1), "`range(n)` has n numbers and starts at 0.", by=(STEPS,)
    ),
    Mistake(
        "a step too few", loop(RIGHT, steps=lambda n: n - 1), "`range(n)` has n numbers and starts at 0.", by=(STEPS,)
    ),
    Mistake(
        "two of the optimizer's steps for each gradient",
        loop("draw loss zero backward step step note"),
        "How many of them does one gradient allow?",
        by=(STEPS, BACKWARDS, DRAWS),
    ),
    Mistake(
        "one batch drawn for all steps",
        loop("loss zero backward step note", before="draw"),
        "How often is `draw` called?",
        ALGORITHM,
        by=(DRAWS, STEPS),
    ),
    Mistake(
        "two batches drawn in each step, one for the gradient and one for the number",
        loop("draw loss zero backward step draw loss note"),
        "Which batch does a step's loss belong to?",
        ALGORITHM,
        by=(DRAWS, STEPS),
    ),
    Mistake(
        "a batch drawn and not used",
        (loop(RIGHT, before="draw"), loop(RIGHT, after="draw")),
        "How often is `draw` called?",
        ALGORITHM,
        by=(DRAWS, STEPS),
    ),
    Mistake(
        "the loss after the step, where the one before it belongs",
        loop("draw loss zero backward step loss note"),
        "Of which loss is the gradient that the step takes?",
        by=(*COUNTS, NUMBERS),
    ),
    Mistake(
        "the loss computed twice in each step",
        loop("draw loss zero backward step note loss"),
        "A loss has noise of its own: is the second one the same?",
        by=COUNTS,
    ),
    Mistake(
        "the step taken before the gradient is there",
        (
            loop("draw loss step zero backward note"),
            loop("draw loss zero step backward note"),
            loop("draw step loss zero backward note"),
        ),
        "Which gradient does the optimizer see in the first step?",
        ALGORITHM,
        by=(ORDER,),
    ),
    Mistake(
        "the gradient cleared between backward and step, so that nothing moves",
        loop("draw loss backward zero step note"),
        "What is in `.grad` when the optimizer's step reads it?",
        by=(*COUNTS, LEARNED),
    ),
    Mistake(
        "the gradients of earlier steps never cleared",
        loop("draw loss backward step note"),
        "`backward` adds to `.grad`; what is in it from the step before?",
        by=(*COUNTS, LEARNED),
    ),
    Mistake(
        "gradient ascent: the loss's sign the other way round",
        loop(RIGHT, changed=lambda value, n: -value),
        "Should the loss rise or fall? An optimizer's step goes against the gradient already.",
        by=(*COUNTS, LEARNED),
    ),
    Mistake(
        "the loss divided or multiplied before its gradient is taken",
        tuple(
            loop(RIGHT, changed=change)
            for change in (lambda value, n: value / n, lambda value, n: value * n, lambda value, n: value / 2)
        ),
        "This loop accumulates nothing over its steps: which gradient belongs to a step?",
        by=(*COUNTS, LEARNED),
    ),
    Mistake(
        "the root, the square or the logarithm of the loss made smaller, not the loss",
        tuple(loop(RIGHT, changed=change) for change in (lambda v, n: v**0.5, lambda v, n: v**2, lambda v, n: v.log())),
        "Of which number is the gradient?",
        by=(*COUNTS, LEARNED),
    ),
    Mistake(
        "tensors kept, where numbers belong",
        (
            loop(RIGHT, noted=lambda value, notes: value),
            loop(RIGHT, noted=lambda value, notes: value, returned=lambda notes: sum(notes)),
        ),
        "A loss tensor keeps its whole graph in memory; which method returns its number?",
        "what `learn` returns",
    ),
    Mistake(
        "texts, where numbers belong",
        loop(RIGHT, noted=lambda value, notes: str(value.item())),
        "What could draw a curve of them?",
        "what `learn` returns",
    ),
    Mistake(
        "losses added up, where each step's own belongs",
        loop(RIGHT, noted=lambda value, notes: value.item() + sum(notes[-1:])),
        "Can a curve of sums ever fall?",
    ),
    Mistake(
        "a mean over the steps, where each step's own loss belongs",
        (
            loop(RIGHT, noted=lambda value, notes: (value.item() + sum(notes[-1:]) * len(notes)) / (len(notes) + 1)),
            loop(RIGHT, returned=lambda notes: sum(notes) / len(notes)),
            loop(RIGHT, noted=lambda value, notes: value.item() / 5),
        ),
        "What does `learn` return of each step?",
        "what `learn` returns",
    ),
    Mistake(
        "one step's loss, where a list of all belongs",
        (
            loop(RIGHT, returned=lambda notes: notes[-1:]),
            loop(RIGHT, returned=lambda notes: notes[-1]),
            loop(RIGHT, returned=sum),
        ),
        "What does `learn` return of each step?",
        "what `learn` returns",
    ),
    Mistake(
        "the losses in reversed order",
        loop(RIGHT, returned=lambda notes: notes[::-1]),
        "Which loss is the first of the list?",
        "what `learn` returns",
    ),
    Mistake("an empty list", loop(RIGHT, returned=lambda notes: []), "Where do the losses go?", "what `learn` returns"),
)
