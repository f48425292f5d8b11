"""Reading a model's config files, without silently ignoring what they ask for; `rules` says what that may be."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from minti.checkpoints.rules import RULES
from minti.machine.configs import check_range, check_types
from minti.machine.messages import one_line, shortened, shown

C = TypeVar("C")


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Raises FileNotFoundError, ValueError: naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a model folder in the layout of SD v1.4")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a config: expected a JSON object, found {shown(content)}")
    return content


def load_config(kind: type[C], path: Path) -> C:
    """A config file as the dataclass of its kind. Raises FileNotFoundError, ValueError: naming the file."""
    return parse_config(kind, read_json(path), str(path))


def parse_config(kind: type[C], values: Mapping[str, Any], origin: str = "config.json") -> C:
    """The parsed JSON as the dataclass of its kind, whose fields are the keys that the file may set.

    Keys that begin with an underscore are remarks of the writer. Raises ValueError: a value is of a wrong type, out of
    range, or not implemented by minti; names the file, `origin`, and the key.
    """
    rules, known, chosen = RULES[kind], {field.name for field in fields(kind)}, {}
    for key, value in values.items():
        if key in known:
            chosen[key] = tuple(value) if isinstance(value, list) else value
        accepted = rules.accepts(key, known)
        if accepted is not None and value not in accepted:
            what = f"{origin}: {shortened(key)} = {shown(value)}, but minti implements SD v1, where it is "
            raise ValueError(what + " or ".join(map(repr, accepted)))
    config = kind(**chosen)
    try:
        check_types(config)
        for names, (least, most) in rules.ranges.items():
            check_range(config, least, most, *names.split())
        rules.check(config)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    return config
