"""Settings as dataclasses whose values are of the declared types and in range."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from minti.machine.messages import quoted, shown

NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "None"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a truth value is no number, and what is not finite is none either."""
    args = get_args(hint)
    if get_origin(hint) in (tuple, Sequence):
        return isinstance(value, (tuple, list)) and all(fits(item, args[0]) for item in value)
    if args:
        return any(fits(value, arg) for arg in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def described(hint: Any) -> str:
    """An annotated type in words."""
    args = get_args(hint)
    if get_origin(hint) in (tuple, Sequence):
        return f"a list, each {described(args[0])}"
    return " or ".join(map(described, args)) if args else NAMES[hint]


def check_types(config: Any) -> None:
    """Raises ValueError: a dataclass has a value of another type than its field's; names the first such field."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not fits(value, hint):
            raise ValueError(f"{field.name} = {shown(value)}; expected {described(hint)}")


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Raises ValueError: a number, or one of a list, is not from `least` to `most` (None is); names the field."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if number is not None and not least <= number <= most:
                bound = f"at least {least:,}" if number < least else f"at most {most:,}"
                raise ValueError(f"{name} = {shown(value)}; expected {bound}")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Raises ValueError: a value is none of the choices; names the field."""
    if getattr(config, name) not in choices:
        raise ValueError(f"unknown {name} {quoted(getattr(config, name))}; expected one of {', '.join(choices)}")
