"""What the judge says of a row of drawings: which attributes of the prompt and of the toys came out right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import world
from draw_concepts import concept_name
from measure import TOY, verdicts
from minti.images import to_pixels
from networks import Judge

NAMES = {"second": "second colour", "main": "main colour", "count": "number of toys"}
Tally = dict[str, int]  # attribute -> in how many pictures it is right


def toy_of(folder: Path) -> world.Toy | None:
    """The toy of a bundled concept's folder; None for any other."""
    return {concept_name(toy): toy for toy in world.HELD_OUT}.get(folder.resolve().name)


def wanted(prompt: str, toys: int = 1) -> dict[str, str]:
    """What a prompt names besides toys: the judge's right answers."""
    answers = {"count": "two"} if toys == 2 else {}
    styles = [style for style, text in world.STYLES.items() if text in prompt]
    named = {"style": max(styles, key=len, default=None)}
    if named["style"] not in world.COLOURLESS:
        named["background"] = next((name for name in world.BACKGROUNDS if f"on a {name} background" in prompt), None)
    if toys == 1:
        named["place"] = next((place for place in world.PLACES if place in prompt), None)
        named["size"] = next((size for size in world.SIZES if f"a {size} " in prompt), None)
    return answers | {name: answer for name, answer in named.items() if answer}


def seen_of(toy: world.Toy, style: str) -> dict[str, str]:
    """What can be seen of a toy in a style: all, or without colours, or without the pattern."""
    hidden = {"main", "second"} if style in world.COLOURLESS else set()
    hidden |= set() if world.pattern_visible(toy, style) else {"pattern"}
    return {name: getattr(toy, name) for name in TOY if name not in hidden}


def tally(judge: Judge, pictures: Sequence[Image.Image], prompt: str, toys: Sequence[world.Toy]) -> list[Tally]:
    """How often the prompt's attributes are right, then each toy's; "all" counts the pictures where all of them are.

    Of a pair each toy may stand on either side: the side is taken on which more of both is right.
    """
    asked = wanted(prompt, len(toys))
    looks = [seen_of(toy, asked.get("style", "photo")) for toy in toys]
    counts: list[Tally] = [defaultdict(int) for _ in range(1 + len(toys))]
    pixels = torch.stack([to_pixels(picture, world.RESOLUTION) for picture in pictures])
    for verdict in verdicts(judge, pixels):
        sides = [(0, 1), (1, 0)] if len(toys) == 2 else [(0,)]
        matches = [
            [
                {name: verdict[f"{name}_{slot}"] == value for name, value in look.items()}
                for look, slot in zip(looks, side)
            ]
            for side in sides
        ]
        best = max(matches, key=lambda match: sum(sum(right.values()) for right in match))
        for count, right in zip(counts, [{name: verdict[name] == asked[name] for name in asked}, *best]):
            for name, value in (right | {"all": all(right.values())}).items():
                count[name] += value
    return [dict(count) for count in counts]


def sentence(counts: Sequence[Tally], words: Sequence[str], total: int) -> str:
    """What the tallies of `tally` say of a row of `total` pictures."""
    asked, *kept = counts
    obeyed = [name for name in asked if name != "all" and asked[name] == total]
    parts = [f"obeys the {_and(obeyed)}"] if obeyed else []
    if missed := _missed(asked, total):
        parts.append(f"misses the {missed}")
    for word, count in zip(words, kept):
        lost = _missed(count, total)
        parts.append(f"{word} loses its {lost}" if lost else f"{word} keeps all that can be seen of it")
    return "; ".join(parts)


def _missed(count: Tally, total: int) -> str:
    wrong = {name: total - right for name, right in count.items() if name != "all" and right < total}
    return _and([f"{NAMES.get(name, name)} in {number} of {total}" for name, number in wrong.items()])


def _and(names: Sequence[str]) -> str:
    named = [NAMES.get(name, name) for name in names]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1] if named else ""
