"""Whether two results are the same, and how they differ, in a learner's words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, allclose

from minti.runs.messages import shortened

LONGEST = 16  # numbers of a tensor in a message


def same(a: Any, b: Any) -> bool:
    """Equal up to rounding: tensors, numbers, texts, and lists of them."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-5 + 1e-4 * abs(b) or (a != a and b != b) or a == b
    return type(a) is type(b) and (a is None or (isinstance(a, str) and a == b))


def difference(given: dict[str, Any], expected: dict[str, Any]) -> str:
    """Where two tables of results differ first, and how."""
    label = next(key for key in expected if not same(given.get(key), expected[key]))
    how = unlike(given.get(label), expected[label])
    return f"{label}: {how}" if label else how


def unlike(given: Any, expected: Any) -> str:
    """How two results differ, in a few words."""
    if given is None:
        return "gives nothing: is there a return?"
    got, asked = kind(given), kind(expected)
    if got != asked:
        return f"gives {got}, expected {asked}" + (": `.item()`?" if (got, asked) == ("a tensor", "a number") else "")
    if isinstance(given, (tuple, list)) and len(given) != len(expected):
        return f"gives {len(given)} values, expected {len(expected)}"
    if isinstance(given, (tuple, list)) and not all(isinstance(each, (int, float, str)) for each in expected):
        return next(unlike(a, b) for a, b in zip(given, expected) if not same(a, b))
    if isinstance(given, Tensor) and given.shape != expected.shape:
        return f"gives shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
    if has_nan(given):
        return "your result contains NaN"
    if isinstance(given, Tensor) and given.numel() > LONGEST:
        return f"yours is off by up to {(given.double() - expected.double()).abs().max().item():.3g}"
    return f"yours {shown(given)}, right {shown(expected)}"


def has_nan(value: Any) -> bool:
    return bool(value.isnan().any()) if isinstance(value, Tensor) else value != value


def shown(value: Any) -> str:
    """A result on one line: numbers with three digits; a tensor as lists, without axes of one entry."""
    if isinstance(value, Tensor):
        return shown(value.tolist() if value.dim() == 1 else value.squeeze().tolist())
    if isinstance(value, (tuple, list)):
        inside = ", ".join(map(shown, value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f'"{value}"' if isinstance(value, str) else shortened(repr(value))


def kind(value: Any) -> str:
    """What a result is, in a learner's words."""
    kinds = {Tensor: "a tensor", (int, float): "a number", str: "a text", (tuple, list): "a list"}
    return next((name for types, name in kinds.items() if isinstance(value, types)), f"a {type(value).__name__}")
