"""What is seen of a function: a table of {in words: a result}. What begins with "?" only tells mistakes apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from exercise.grader.compare import same, shown

Function = Callable[..., Any]
Seen = dict[str, Any]
Probe = Callable[[Function], Any]  # calls a function on inputs of its own, the same every time; what is seen of it
Case = dict[str, Any]  # the arguments of a call

CHANGED = "arguments that were changed"
AGAIN = "the same call once more gives the same"
RETURNED = "?an argument that comes back as it was"
LARGE = 12  # numbers of a tensor that are still shown


def calling(*cases: Case) -> Probe:
    """Calls a function on each case, the smallest first, so that a difference is shown at the first that has it."""

    def probe(function: Function) -> Seen:
        found, changed, again, returned = {}, [], True, None
        for case in cases:
            given, once_more = copied(case), copied(case)
            try:
                found[words(case)] = result = function(*given.values())
            except Exception as error:
                error.seen = found  # before it
                raise
            again &= same(result, function(*once_more.values()))
            changed += [name for name, value in case.items() if not same(given[name], value)]
            back = {name for name, value in case.items() if isinstance(value, Tensor) and same(result, value)}
            returned = back if returned is None else returned & back
        return found | {CHANGED: min(changed, default=""), AGAIN: again, RETURNED: min(returned or [""])}

    return probe


def copied(case: Case) -> Case:
    return {name: value.clone() if isinstance(value, Tensor) else copy.copy(value) for name, value in case.items()}


def words(case: Case) -> str:
    """A case's arguments, "clean = 1, noise = 0"; of a large tensor, the shape."""
    return ", ".join(
        f"{name} of shape {tuple(value.shape)}"
        if isinstance(value, Tensor) and value.numel() > LARGE
        else f"{name} = {shown(value)}"
        for name, value in case.items()
    )
