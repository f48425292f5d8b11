"""Reading a `config.json` into a dataclass, without silently ignoring what it asks for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, TypeVar

C = TypeVar("C", bound="Config")
OFF = (None, False)


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
            ValueError: a key has a value that minti does not implement.
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
                        f"{origin}: {key} = {value!r}, but minti implements SD v1, where {key} is "
                        + " or ".join(repr(v) for v in accepted)
                    )
        return cls(**chosen)
