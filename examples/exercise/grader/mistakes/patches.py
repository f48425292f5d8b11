"""Part 6: E4's patch of `optimizer.step`, as it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exercise.grader.seen import Function


def patched(
    body: Callable[..., None], kept: Callable[[Tensor], Tensor] = lambda weight: weight.detach().clone()
) -> Function:
    """E4's patch with something else in it: body(step, weight, first, copy) is the patched step."""

    def function(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
        copy, step = kept(weight), optimizer.step

        @torch.no_grad()
        def patched_step(*args: Any, **options: Any) -> None:
            body(lambda: step(*args, **options), weight, first, copy)

        optimizer.step = patched_step

    return function


def afterwards(write: Callable[[Tensor, int, Tensor], Any], **options: Any) -> Function:
    """What is written into the matrix after the step: write(weight, first, copy)."""

    def body(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
        step()
        write(weight, first, copy)

    return patched(body, **options)


def back(weight: Tensor, first: int, copy: Tensor) -> None:
    weight[:first] = copy[:first]


def zeroed(rows: Callable[[int], slice], value: float = 0.0) -> Function:
    """The gradient of some rows set to zero."""

    def body(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
        weight.grad[rows(first)] = value
        step()

    return patched(body)


def without_step(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    back(weight, first, copy)


def too_early(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    back(weight, first, copy)
    step()


def twice(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    step()
    back(weight, first, copy)


def copied_in_the_step(step: Callable, weight: nn.Parameter, first: int, copy: Tensor) -> None:
    step()
    back(weight, first, weight.clone())


def every_class(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    copy, kind = weight.detach().clone(), type(optimizer)
    step = kind.step

    def patched_step(self: Optimizer, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        with torch.no_grad():
            back(weight, first, copy)

    kind.step = patched_step


def late_copy(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    step, copies = optimizer.step, []

    @torch.no_grad()
    def patched_step() -> None:
        step()
        copies.append(weight.detach().clone())
        back(weight, first, copies[0])

    optimizer.step = patched_step


def endless(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    optimizer.step = lambda: optimizer.step()


def called(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    optimizer.step = None


def with_gradient(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    copy, step = weight.detach().clone(), optimizer.step

    def patched_step() -> None:
        step()
        back(weight, first, copy)

    optimizer.step = patched_step


def nothing(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    pass


def frozen(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    weight.requires_grad_(False)


def part_of_a_parameter(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    weight[:first].requires_grad_(False)


def all_decay_off(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    zeroed(lambda first: slice(first))(optimizer, weight, first)
