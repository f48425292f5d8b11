"""Settings as dataclasses whose values are of the declared types; and reading a `config.json` into one of them, without
silently ignoring what it asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from minti.machine.messages import shortened, shown

C = TypeVar("C", bound="Config")
OFF = (None, False)
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
    """Refuses a dataclass with a value of another type than its field's.

    Raises:
        ValueError: naming the first such field.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not fits(value, hint):
            raise ValueError(f"{field.name} = {shown(value)}; expected {described(hint)}")


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Refuses a number, or one of a list, that is not from `least` to `most`; None passes.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if number is not None and not least <= number <= most:
                bound = f"at least {least:,}" if number < least else f"at most {most:,}"
                raise ValueError(f"{name} = {shown(value)}; expected {bound}")


class Config:
    """Base of the configs: dataclasses whose field names are the keys of the release's `config.json`.

    Attributes:
        FIXED: keys that are no fields, of which minti implements some values only: {key: accepted values}.
        IGNORED: keys that change nothing here.
        STRICT: what becomes of all other keys. True: they must be off (None or False), so that a checkpoint of another
            architecture is refused, and not loaded and drawn wrongly. False: they are passed over.
    """

    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    IGNORED: ClassVar[tuple[str, ...]] = ()
    STRICT: ClassVar[bool] = True

    @classmethod
    def from_dict(cls: type[C], config: dict[str, Any], origin: str = "config.json") -> C:
        """Builds the config from the parsed JSON.

        Args:
            config: the JSON object; keys that begin with an underscore are remarks of the writer.
            origin: what to call the file in an error message.

        Raises:
            ValueError: a key has a value of a wrong type, or one that minti does not implement; names the file.
        """
        known = {field.name for field in fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in config.items():
            if key in known:
                chosen[key] = tuple(value) if isinstance(value, list) else value
            elif key in cls.FIXED or (cls.STRICT and not key.startswith("_") and key not in cls.IGNORED):
                accepted = cls.FIXED.get(key, OFF)
                if value not in accepted:
                    raise ValueError(
                        f"{origin}: {shortened(key)} = {shown(value)}, but minti implements SD v1, where it "
                        "is " + " or ".join(repr(v) for v in accepted)
                    )
        try:
            return cls(**chosen)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
