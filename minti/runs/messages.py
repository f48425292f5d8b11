"""Values and other libraries' errors in messages: on one line, and not too long."""

from collections.abc import Sequence
from typing import Any


def shortened(text: str, most: int = 100) -> str:
    """A text for a message: what cannot be printed is escaped, and a long one is cut."""
    cut = text if len(text) <= most else text[:most] + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def short_repr(value: object) -> str:
    """A value as Python writes it, on one line and not too long."""
    try:
        return repr(value[:100]) + " ..." * (len(value) > 100) if isinstance(value, str) else shortened(repr(value))
    except Exception:  # an int of thousands of digits
        return f"a value of type {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """Another library's error message on one line; its type where it has none."""
    return shortened(" ".join(str(error).split()), 300) or type(error).__name__


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError: a value is none of the choices."""
    if value not in choices:
        raise ValueError(f"unknown {name} {short_repr(value)}; expected one of {', '.join(choices)}")
