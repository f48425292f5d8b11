"""Types of command line options: numbers within their bounds, and texts in UTF-8."""

import argparse
import math
import os
from collections.abc import Callable

from minti.runs.messages import short_repr, shortened


def whole(least: int, most: int = 2**31) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{short_repr(text)} is not a whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{shortened(text)} is not from {least} to {most}")
        return number

    return parse


def whole_or_auto(least: int) -> Callable[[str], int | str]:
    """The type of an option that takes a whole number from `least`, or "auto"."""
    return lambda text: text if text == "auto" else whole(least)(text)


def finite(text: str) -> float:
    """The type of an option that takes a number, but neither infinity nor NaN."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{short_repr(text)} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a finite number")
    return number


def number_or_name(text: str) -> float | str:
    """The type of an option that takes a number or a name."""
    try:
        return float(text)
    except ValueError:
        return text


def utf8(argument: str) -> str:
    """An argument as its bytes say in UTF-8, whatever the locale; the name of a file as the system knows it."""
    try:
        return argument if os.path.exists(argument.split("=")[0]) else os.fsencode(argument).decode()
    except UnicodeError:  # it is in another encoding
        return argument


def filled(argument: str) -> str:
    """The type of an option that takes a text, but not an empty one, which would pass for its default."""
    if not argument.strip():
        raise argparse.ArgumentTypeError(f"{short_repr(argument)} is empty; leave the option out for its default")
    return utf8(argument)
