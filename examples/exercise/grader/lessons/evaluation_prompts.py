"""Part 8's prompts and samples, and the known mistakes with them (exercise E4, task 3b)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from exercise.grader.part import Mistake, Task

Prompts = Callable[[Sequence[str], Sequence[str], str, str], list[str]]
SINGLE = ("a comic book illustration of a {}", "a black and white photo of a {}", "an oil painting of a {} in a forest")
BOTH = ("a photo of a {} next to a {}", "a comic book illustration of a {} and a {} on the beach")


def eight_prompts(templates: Sequence[str], both: Sequence[str], first: str, second: str) -> list[str]:
    # as `plan` and `fill` in examples/support/rows.py do
    alone = [template.replace("{}", word) for word in (first, second) for template in templates]
    return alone + [template.replace("{}", first, 1).replace("{}", second) for template in both]


def samples_of(
    prompts: Sequence[str], per_prompt: int, sample: Callable[[str, torch.Generator], Any], seed: int
) -> list[list[Any]]:
    # image i of every prompt from the noise of seed + i, as `Artist.draw` does in examples/support/drawing.py
    seeds = range(seed, seed + per_prompt)
    return [[sample(prompt, torch.Generator().manual_seed(each)) for each in seeds] for prompt in prompts]


def prompts_probe(function: Prompts) -> dict[str, Any]:
    return {
        "the prompts of one template and of one for both": function(["a {}"], ["a {} and a {}"], "<x>", "<y>"),
        "all eight": function(list(SINGLE), list(BOTH), "<cat>", "<mug>"),
    }


def samples_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """`sample` gives the prompt and a number of the generator's, instead of an image."""
    numbers: list[list[float]] = []

    def sample(prompt: str, generator: torch.Generator) -> str:
        numbers.append(torch.rand(2, generator=generator).tolist())
        return f"{prompt}, {numbers[-1][0]:.3f} {numbers[-1][1]:.3f}"

    return {
        "two images of one prompt": function(["a <x>"], 2, sample, 7),
        "three of each of two prompts": function(["a <x>", "a <y>"], 3, sample, 0),
        "how many images were sampled": len(numbers),
    }


def filling(
    alone: Prompts = lambda templates, both, first, second: eight_prompts(templates, (), first, second),
    pair: Callable[[str, str, str], list[str]] = lambda template, first, second: [
        template.replace("{}", first, 1).replace("{}", second)
    ],
) -> Prompts:
    """`eight_prompts` with something else in one of its places."""

    def function(templates: Sequence[str], both: Sequence[str], first: str, second: str) -> list[str]:
        together = [prompt for template in both for prompt in pair(template, first, second)]
        return alone(templates, both, first, second) + together

    return function


def sampling(
    seeds: Callable[[int, int, int], int] = lambda seed, row, i: seed + i,
    shared: bool = False,
    wanted: Callable[[int], int] = lambda per_prompt: per_prompt,
    result: Callable[[list[list[Any]]], Any] = lambda rows: rows,
) -> Callable[..., Any]:
    """`samples_of` with other seeds, with one generator for several images, or another number of images."""

    def function(
        prompts: Sequence[str], per_prompt: int, sample: Callable[[str, torch.Generator], Any], seed: int
    ) -> Any:
        one, rows = torch.Generator().manual_seed(seed), []
        for row, prompt in enumerate(prompts):
            own = [torch.Generator().manual_seed(seeds(seed, row, i)) for i in range(wanted(per_prompt))]
            rows.append([sample(prompt, one if shared else generator) for generator in own])
        return result(rows)

    return function


def one_for_a_row(
    prompts: Sequence[str], per_prompt: int, sample: Callable[[str, torch.Generator], Any], seed: int
) -> list[list[Any]]:
    return [sampling(shared=True)([prompt], per_prompt, sample, seed)[0] for prompt in prompts]


def numbered(prompts: Sequence[str], per_prompt: int, sample: Callable[..., Any], seed: int) -> list[list[Any]]:
    every = count(seed)
    return [
        [sample(prompt, torch.Generator().manual_seed(next(every))) for _ in range(per_prompt)] for prompt in prompts
    ]


WRITTEN, SEEDS = "`000`, task 3b, i and iii", "`000`, task 3c; the docstring"
TASKS = (
    Task(
        eight_prompts,
        prompts_probe,
        WRITTEN,
        (
            Mistake(
                "only the first word's prompts, and those for both",
                filling(lambda templates, both, first, second: [each.replace("{}", first) for each in templates]),
                "Task 3b has 3 + 3 + 2 prompts; how many are yours?",
                "`000`, task 3b, ii",
            ),
            Mistake(
                "template by template, where all of the first word's come first",
                filling(
                    lambda templates, both, first, second: [
                        each.replace("{}", word) for each in templates for word in (first, second)
                    ]
                ),
                "Which of the two loops is the outer one?",
                "the docstring",
            ),
            Mistake(
                "the same word in both places",
                filling(pair=lambda template, first, second: [template.replace("{}", first)]),
                "How many of the {} does `replace` replace?",
                WRITTEN,
            ),
            Mistake(
                "the two words exchanged",
                filling(pair=lambda template, first, second: eight_prompts((), [template], second, first)),
                "Which word goes where in a template for both?",
                "the docstring",
            ),
            Mistake(
                "a {} left where the second word belongs",
                filling(pair=lambda template, first, second: [template.replace("{}", first, 1)]),
                "Read your last prompt aloud.",
                WRITTEN,
            ),
            Mistake(
                "the templates for both in both orders",
                filling(
                    pair=lambda template, first, second: (
                        eight_prompts((), [template], first, second) + eight_prompts((), [template], second, first)
                    )
                ),
                "Task 3b has 3 + 3 + 2 prompts; how many are yours?",
                WRITTEN,
            ),
            Mistake(
                "the prompts for both left out",
                filling(pair=lambda template, first, second: []),
                "Task 3b has 3 + 3 + 2 prompts; how many are yours?",
                "`000`, task 3b, iii",
            ),
            Mistake(
                "the prompts for both first",
                lambda templates, both, first, second: (
                    eight_prompts((), both, first, second) + eight_prompts(templates, (), first, second)
                ),
                "In which order does the docstring list them?",
                "the docstring",
            ),
        ),
    ),
    Task(
        samples_of,
        samples_probe,
        SEEDS,
        (
            Mistake(
                "every image of a prompt from the same noise",
                sampling(lambda seed, row, i: seed),
                "How much do four images show that are all the same?",
                SEEDS,
            ),
            Mistake(
                "another noise for every prompt",
                sampling(lambda seed, row, i: seed + row),
                "Two images in a column differ: by the prompt, or by the noise?",
                SEEDS,
            ),
            Mistake(
                "seeds counted through all images",
                numbered,
                "Two images in a column differ: by the prompt, or by the noise?",
                SEEDS,
            ),
            Mistake(
                "one generator for all images",
                sampling(shared=True),
                "Which noise has the first image of the second prompt?",
                SEEDS,
            ),
            Mistake(
                "one generator for a prompt's images",
                one_for_a_row,
                "Could somebody sample your third image alone?",
                SEEDS,
            ),
            Mistake(
                "seeds from seed + 1 on",
                sampling(lambda seed, row, i: seed + 1 + i),
                "Which seed has image 0?",
                SEEDS,
            ),
            Mistake(
                "seeds from 0 on, whatever `seed` says",
                sampling(lambda seed, row, i: i),
                "How would one get four other images of the same prompts?",
                SEEDS,
            ),
            Mistake(
                "four images of each, whatever `per_prompt` says",
                sampling(wanted=lambda per_prompt: 4),
                "What if somebody wants more than E4 does?",
                "the argument `per_prompt`",
            ),
            Mistake(
                "one image of each",
                sampling(wanted=lambda per_prompt: 1),
                "How much does a single sample say?",
                "`000`, task 3c",
            ),
            Mistake(
                "one long list, where a list for each prompt belongs",
                sampling(result=lambda rows: [each for row in rows for each in row]),
                "How would a page put them into rows?",
                "what `samples_of` returns",
            ),
        ),
    ),
)
