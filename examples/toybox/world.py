"""The toybox's procedural world: toys, scenes of one or two toys, and their captions.

A `Toy` is an *identity*: a shape, a pattern and two colours. A `Scene` has one or two toys, a size, a place, a
background and a style. Most identities have made-up names. Twelve are held out: no training image shows them, and the
examples learn them by textual inversion. `painting.py` renders scenes.
"""

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import product

import numpy as np

RESOLUTION = 64

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
PATTERNS = ("stripe", "belt", "spot", "half", "side")  # the region of the second colour
COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "yellow": (0.98, 0.84, 0.16),
    "green": (0.16, 0.66, 0.22),
    "blue": (0.14, 0.28, 0.88),
    "pink": (1.00, 0.56, 0.76),
    "white": (0.97, 0.97, 0.97),
}
BACKGROUNDS = {
    "teal": (0.08, 0.42, 0.42),
    "grey": (0.52, 0.52, 0.52),
    "brown": (0.44, 0.27, 0.14),
    "navy": (0.08, 0.09, 0.30),
    "sand": (0.84, 0.73, 0.52),
    "black": (0.05, 0.05, 0.05),
}
SIZES = {"small": 13.5, "big": 19.5}  # radius in pixels
PLACES = {
    "on the left": (22.0, 32.0),
    "on the right": (42.0, 32.0),
    "at the top": (32.0, 22.0),
    "at the bottom": (32.0, 42.0),
    "in the middle": (32.0, 32.0),
}
STYLES = {
    "photo": "a photo of",
    "cartoon": "a cartoon of",
    "sketch": "a sketch of",
    "pixel art": "a pixel art picture of",
    "black and white": "a black and white photo of",
}
LUMINANCE = (0.30, 0.59, 0.11)
COLOURLESS = ("sketch", "black and white")  # styles without colours
PAIR_PLACES = ((16.0, 32.0), (48.0, 32.0))  # a pair is side by side, both small


@dataclass(frozen=True)
class Toy:
    """The identity of a toy: its looks, without its size and place."""

    shape: str
    pattern: str
    main: str
    second: str

    @property
    def looks(self) -> str:
        """As captions say it: "red star with a blue stripe"."""
        return f"{self.main} {self.shape} with a {self.second} {self.pattern}"


@dataclass(frozen=True)
class Scene:
    """The content of an image: a toy with size and place, or two side by side; background; style."""

    toys: tuple[Toy, ...]
    size: str
    place: str
    background: str
    style: str


def all_toys() -> list[Toy]:
    """All 1,200 identities: 8 shapes, 5 patterns, 6 x 5 pairs of colours."""
    combinations = product(SHAPES, PATTERNS, COLOURS, COLOURS)
    return [Toy(s, p, main, second) for s, p, main, second in combinations if main != second]


def _make_names(rng: np.random.Generator, count: int) -> list[str]:
    onsets, vowels = list("bdfgklmnprstvz"), list("aeiou")
    real_words = {word for text in (*SHAPES, *PATTERNS, *COLOURS, *BACKGROUNDS) for word in text.split()}
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(3))
        if name not in names and name not in real_words:
            names.append(name)
    return names


def _identities(named: int = 900, held_out: int = 12) -> tuple[dict[str, Toy], list[Toy]]:
    rng = np.random.default_rng(2302)
    toys = all_toys()
    chosen = [toys[i] for i in rng.permutation(len(toys))[: named + held_out]]
    return dict(zip(_make_names(rng, named), chosen[held_out:])), chosen[:held_out]


# Named toys, and held-out toys that no training image shows: eight for the test set, four for tuning.
NAMED, HELD_OUT = _identities()
TEST_TOYS, TUNING_TOYS = HELD_OUT[:8], HELD_OUT[8:]


def pattern_visible(toy: Toy, style: str) -> bool:
    """Whether the pattern is visible in a style: in black and white, some pairs of colours have the same grey."""
    if style != "black and white":
        return True
    light, dark = (float(np.dot(COLOURS[name], LUMINANCE)) for name in (toy.main, toy.second))
    return abs(light - dark) > 0.1


# --- scenes -----------------------------------------------------------------------------------------------------------


def random_toy(rng: np.random.Generator) -> Toy:
    """A random toy: a named one with probability 1/2, otherwise any that is not held out."""
    if rng.random() < 0.5:
        return list(NAMED.values())[rng.integers(len(NAMED))]
    while True:
        main, second = rng.choice(list(COLOURS), 2, replace=False)
        toy = Toy(str(rng.choice(SHAPES)), str(rng.choice(PATTERNS)), str(main), str(second))
        if toy not in HELD_OUT:
            return toy


def random_scene(rng: np.random.Generator, pair_rate: float = 0.3, toys: tuple[Toy, ...] | None = None) -> Scene:
    """A random scene, of `toys` if they are given."""
    if toys is None:
        toys = tuple(random_toy(rng) for _ in range(2 if rng.random() < pair_rate else 1))
    return Scene(
        toys=toys,
        size="small" if len(toys) == 2 else str(rng.choice(list(SIZES))),
        place=str(rng.choice(list(PLACES))),
        background=str(rng.choice(list(BACKGROUNDS))),
        style=str(rng.choice(list(STYLES), p=(0.4, 0.15, 0.15, 0.15, 0.15))),
    )


# --- captions ---------------------------------------------------------------------------------------------------------

NAME_OF = {toy: name for name, toy in NAMED.items()}


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """A hard negative: the scene with one toy replaced by a similar one; a named toy mostly by a named one."""
    slot = rng.integers(len(scene.toys))
    toy = scene.toys[slot]
    others = [
        Toy(toy.shape, toy.pattern, toy.second, toy.main),
        Toy(_other(SHAPES, toy.shape, rng), toy.pattern, toy.main, toy.second),
        Toy(toy.shape, _other(PATTERNS, toy.pattern, rng), toy.main, toy.second),
        Toy(toy.shape, toy.pattern, _other(COLOURS, toy.main, rng, toy.second), toy.second),
        Toy(toy.shape, toy.pattern, toy.main, _other(COLOURS, toy.second, rng, toy.main)),
    ]
    if toy in NAME_OF and rng.random() < 0.75:
        others = _lookalikes(toy)
    other = others[rng.integers(len(others))]
    return replace(scene, toys=tuple(other if i == slot else kept for i, kept in enumerate(scene.toys)))


def _other(values: Iterable[str], value: str, rng: np.random.Generator, also_not: str = "") -> str:
    return str(rng.choice([v for v in values if v not in (value, also_not)]))


def _shared(a: Toy, b: Toy) -> int:
    return sum(x == y for x, y in zip(astuple(a), astuple(b)))


@cache
def _lookalikes(toy: Toy) -> list[Toy]:
    """The twelve named toys that share the most attributes with a named one."""
    return sorted((other for other in NAME_OF if other != toy), key=lambda other: -_shared(toy, other))[:12]


def describe_toy(toy: Toy, rng: np.random.Generator) -> str:
    """A toy in words: mostly its name if it has one, otherwise all or some attributes: "red star with a blue stripe".

    Each colour precedes the noun that has it, so that a text encoder can tell which is which.
    """
    if toy in NAME_OF and rng.random() < 0.75:
        return NAME_OF[toy]
    if rng.random() < 0.5:
        return toy.looks
    words = [toy.main] if rng.random() < 0.6 else []
    words.append(toy.shape if rng.random() < 0.7 else "toy")
    if rng.random() < 0.6:
        words += ["with a", toy.second, toy.pattern] if rng.random() < 0.7 else ["with a", toy.pattern]
    return " ".join(words)


def caption(
    scene: Scene, rng: np.random.Generator, describe: Callable[[Toy, np.random.Generator], str] = describe_toy
) -> str:
    """A caption that names a random part of the scene's attributes; the article is always "a".

    "a photo of a small bafleki on the left on a teal background", "a sketch of a red star", "bafleki".
    """
    descriptions = [describe(toy, rng) for toy in scene.toys]
    # A caption that names no style belongs to a photo.
    if scene.style == "photo" and rng.random() < 0.1:
        return " ".join(descriptions)
    parts = [STYLES[scene.style]] if scene.style != "photo" or rng.random() < 0.6 else []
    if len(scene.toys) == 2:
        parts.append(f"a {descriptions[0]} next to a {descriptions[1]}")
    else:
        parts.append(f"a {scene.size} {descriptions[0]}" if rng.random() < 0.4 else f"a {descriptions[0]}")
        if rng.random() < 0.4:
            parts.append(scene.place)
    if rng.random() < 0.5:
        parts.append(f"on a {scene.background} background")
    return " ".join(parts)


def words() -> list[str]:
    """The vocabulary: every word that a caption can contain."""
    texts = [*STYLES.values(), *PLACES, *SIZES, *SHAPES, *PATTERNS, *COLOURS, *BACKGROUNDS, *NAMED]
    texts += ["a toy with a toy next to a toy and a toy on a background", "the"]
    return sorted({word for text in texts for word in text.split()})
