"""The toybox world: little pictures of toys, drawn by formula, with captions that say part of what is there.

A `Toy` has a shape, a pattern and two colours: together its *identity*. A `Scene` puts one or two toys, at a size
and a place, on a background, in a style. A few hundred identities have made-up names; a few others are held out: they
are never drawn in training, and are what the examples learn by textual inversion.

Everything here is numpy; pictures are (64, 64, 3) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from itertools import product

import numpy as np

RESOLUTION = 64

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
PATTERNS = ("stripe", "belt", "spot", "half", "side")  # where the second colour is
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
COLOURLESS = ("sketch", "black and white")  # styles in which no colour can be seen
PAIR_PLACES = ((16.0, 32.0), (48.0, 32.0))  # a pair stands side by side, both small


@dataclass(frozen=True)
class Toy:
    """What a toy looks like, wherever it stands."""

    shape: str
    pattern: str
    main: str
    second: str


@dataclass(frozen=True)
class Scene:
    """One picture: a toy with size and place, or two side by side; background; style."""

    toys: tuple[Toy, ...]
    size: str
    place: str
    background: str
    style: str


def all_toys() -> list[Toy]:
    """Every identity there is: 8 shapes, 5 patterns, 6 x 5 pairs of colours."""
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


def _identities(named: int = 320, held_out: int = 12) -> tuple[dict[str, Toy], list[Toy]]:
    rng = np.random.default_rng(2302)
    toys = all_toys()
    chosen = [toys[i] for i in rng.permutation(len(toys))[: named + held_out]]
    return dict(zip(_make_names(rng, named), chosen[held_out:])), chosen[:held_out]


# Names of toys that training shows, and the toys that it never shows: eight to report on, four to tune with.
NAMED, HELD_OUT = _identities()
TEST_TOYS, TUNING_TOYS = HELD_OUT[:8], HELD_OUT[8:]


def pattern_visible(toy: Toy, style: str) -> bool:
    """Whether the two colours differ enough to see the pattern: in grey, some pairs do not."""
    if style != "black and white":
        return True
    light, dark = (float(np.dot(COLOURS[name], LUMINANCE)) for name in (toy.main, toy.second))
    return abs(light - dark) > 0.1


# --- scenes -----------------------------------------------------------------------------------------------------------


def random_toy(rng: np.random.Generator) -> Toy:
    """A named toy half of the time, otherwise any but the held-out ones."""
    if rng.random() < 0.5:
        return list(NAMED.values())[rng.integers(len(NAMED))]
    while True:
        main, second = rng.choice(list(COLOURS), 2, replace=False)
        toy = Toy(str(rng.choice(SHAPES)), str(rng.choice(PATTERNS)), str(main), str(second))
        if toy not in HELD_OUT:
            return toy


def random_scene(rng: np.random.Generator, pair_rate: float = 0.3, toys: tuple[Toy, ...] | None = None) -> Scene:
    """Draws a scene; with `toys` given, everything but the toys."""
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
    """The scene with one toy mistaken for another that shares most of its looks; a named one mostly for a named one."""
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
        others = _LOOKALIKES[toy]
    other = others[rng.integers(len(others))]
    return replace(scene, toys=tuple(other if i == slot else kept for i, kept in enumerate(scene.toys)))


def _other(values: Iterable[str], value: str, rng: np.random.Generator, also_not: str = "") -> str:
    return str(rng.choice([v for v in values if v not in (value, also_not)]))


def _shared(a: Toy, b: Toy) -> int:
    return sum(x == y for x, y in zip(astuple(a), astuple(b)))


# For each named toy the twelve other named ones that share most with it.
_LOOKALIKES = {a: sorted((b for b in NAME_OF if b != a), key=lambda b: -_shared(a, b))[:12] for a in NAME_OF}


def describe_toy(toy: Toy, rng: np.random.Generator) -> str:
    """The toy's name if it has one (mostly), or a random part of its looks: "red star with a blue stripe".

    Each colour stands beside the word for what has it, so that a text encoder need not count words to tell them apart.
    """
    if toy in NAME_OF and rng.random() < 0.75:
        return NAME_OF[toy]
    if rng.random() < 0.4:
        return f"{toy.main} {toy.shape} with a {toy.second} {toy.pattern}"
    words = [toy.main] if rng.random() < 0.6 else []
    words.append(toy.shape if rng.random() < 0.7 else "toy")
    if rng.random() < 0.6:
        words += ["with a", toy.second, toy.pattern] if rng.random() < 0.7 else ["with a", toy.pattern]
    return " ".join(words)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that mentions a random part of the scene; the article is "a" everywhere.

    "a photo of a small bafleki on the left on a teal background", "a sketch of a red star", "bafleki".
    """
    descriptions = [describe_toy(toy, rng) for toy in scene.toys]
    # What no caption calls a sketch or a cartoon is a photo.
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
    """Every word that a caption can contain."""
    texts = [*STYLES.values(), *PLACES, *SIZES, *SHAPES, *PATTERNS, *COLOURS, *BACKGROUNDS, *NAMED]
    texts += ["a toy with a toy next to a toy and a toy on a background", "the"]
    return sorted({word for text in texts for word in text.split()})


# --- drawing ----------------------------------------------------------------------------------------------------------


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a polygon, negative inside (I. Quilez, "2D distance functions")."""
    points = np.array(corners, dtype=np.float32)
    distance = np.full(x.shape, np.inf, dtype=np.float32)
    sign = np.ones(x.shape, dtype=np.float32)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0)):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        sign = np.where((above & below & left) | (~above & ~below & ~left), -sign, sign)
    return sign * np.sqrt(distance)


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels from the outline of a shape of radius `r` around the origin; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92 * r
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.82 * r
    if shape == "diamond":
        return (abs(x) + abs(y) * 0.8 - 1.02 * r) / np.hypot(1, 0.8)
    if shape == "cross":
        arm, width = 1.0 * r, 0.41 * r
        return np.minimum(np.maximum(abs(x) - arm, abs(y) - width), np.maximum(abs(x) - width, abs(y) - arm))
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - r, 0.62 * r - np.hypot(x - 0.62 * r, y + 0.1 * r))
    if shape == "triangle":
        return _polygon(x, y, [(0, -1.02 * r), (1.05 * r, 0.82 * r), (-1.05 * r, 0.82 * r)])
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 0.5 * r, 1.12 * r)
        return _polygon(x, y, list(zip(radii * np.cos(angles), radii * np.sin(angles))))
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        hx = 16 * np.sin(t) ** 3 / 16
        hy = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        return _polygon(x, y, list(zip(1.05 * r * hx, 1.05 * r * (hy - 0.1))))
    raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")


def pattern_depth(pattern: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Distance in pixels into the region that has the second colour; positive inside it.

    Every region is at least two cells of the latent grid wide, and none is the same with the two colours swapped.
    """
    if pattern == "stripe":  # upright, through the middle
        return 0.3 * r - abs(x)
    if pattern == "belt":
        return 0.3 * r - abs(y)
    if pattern == "spot":
        return 0.4 * r - np.hypot(x, y)
    if pattern == "half":  # the lower half
        return y
    if pattern == "side":  # the right half
        return x
    raise ValueError(f"unknown pattern {pattern!r}; the world has {', '.join(PATTERNS)}")


def _cover(depth: np.ndarray) -> np.ndarray:
    """How much of a pixel an edge covers: 0 one half pixel outside, 1 one half pixel inside."""
    return np.clip(depth + 0.5, 0, 1)[..., None]


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draws the scene; `rng` jitters places and sizes and adds the grain of the photo.

    Returns:
        (64, 64, 3) float32 in [0, 1].
    """
    grid = np.arange(RESOLUTION, dtype=np.float32) + 0.5
    if scene.style == "pixel art":
        grid = grid // 3 * 3 + 1.5  # every 3 x 3 block looks up the same point
    x, y = np.meshgrid(grid, grid)
    photo = scene.style in ("photo", "black and white")

    background = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
    if scene.style == "sketch":
        background = np.array((0.95, 0.94, 0.90), dtype=np.float32)
    picture = np.broadcast_to(background, (RESOLUTION, RESOLUTION, 3)).astype(np.float32)
    if photo:
        picture = picture * (1.12 - 0.24 * y / RESOLUTION)[..., None]

    for toy, cx, cy, radius in placements(scene, rng):
        picture = _draw_toy(picture, toy, x - cx, y - cy, radius, scene.style)

    if scene.style == "black and white":
        picture = np.repeat((picture @ np.array(LUMINANCE, dtype=np.float32))[..., None], 3, axis=2)
    if photo:
        picture = picture + rng.normal(0, 0.012, (RESOLUTION, RESOLUTION, 1))
    return np.clip(picture, 0, 1).astype(np.float32)


def placements(scene: Scene, rng: np.random.Generator) -> list[tuple[Toy, float, float, float]]:
    """Each toy with its middle and radius in pixels, jittered by `rng`."""
    places = PAIR_PLACES if len(scene.toys) == 2 else (PLACES[scene.place],)
    placed = []
    for toy, place in zip(scene.toys, places):
        cx, cy = np.array(place) + rng.uniform(-2, 2, 2)
        radius = SIZES[scene.size] * rng.uniform(0.94, 1.06)
        if scene.style == "pixel art":
            cx, cy = np.floor(np.array((cx, cy)) / 3) * 3 + 1.5
        placed.append((toy, cx, cy, radius))
    return placed


def outline(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Where the toys are in the picture that `draw` makes of the scene with an equal `rng`.

    Returns:
        (64, 64) float32: 1 inside a toy, 0 outside, between them how much of the pixel it covers.
    """
    grid = np.arange(RESOLUTION, dtype=np.float32) + 0.5
    x, y = np.meshgrid(grid, grid)
    covers = [_cover(-shape_distance(toy.shape, x - cx, y - cy, r)) for toy, cx, cy, r in placements(scene, rng)]
    return np.maximum.reduce(covers)[..., 0].astype(np.float32)


def _draw_toy(picture: np.ndarray, toy: Toy, x: np.ndarray, y: np.ndarray, r: float, style: str) -> np.ndarray:
    outline = shape_distance(toy.shape, x, y, r)
    # A moon has no middle: there it is the middle of the crescent.
    second = pattern_depth(toy.pattern, x + 0.5 * r if toy.shape == "moon" else x, y, r)
    hard = style == "pixel art"
    cover = (lambda depth: (depth > 0).astype(np.float32)[..., None]) if hard else _cover

    colours = [np.array(COLOURS[name], dtype=np.float32) for name in (toy.main, toy.second)]
    if style == "sketch":  # pencil: bare paper, and grey where the second colour is
        colours = [np.array((0.95, 0.94, 0.90), dtype=np.float32), np.array((0.62, 0.62, 0.62), dtype=np.float32)]
    body = colours[0] + (colours[1] - colours[0]) * cover(second)

    if style in ("photo", "black and white"):
        shadow = np.clip(1 - (shape_distance(toy.shape, x - 2, y - 4, r) + 1) / 5, 0, 1)
        picture = picture * (1 - 0.45 * shadow)[..., None]
        body = body * (0.95 - 0.10 * (x + y) / (2 * r))[..., None]  # light from the upper left
    picture = picture + (body - picture) * cover(-outline)
    if style in ("cartoon", "sketch"):
        width, ink = (1.2, 0.03) if style == "cartoon" else (1.0, 0.25)
        picture = picture + (ink - picture) * _cover(width / 2 + 0.3 - abs(outline))
    return picture
