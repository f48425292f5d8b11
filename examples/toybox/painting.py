"""Renders the toybox's scenes: shapes are signed distance functions, patterns are formulas.

Images are (64, 64, 3) float32 in [0, 1].
"""

import numpy as np

from world import BACKGROUNDS, COLOURS, LUMINANCE, PAIR_PLACES, PATTERNS, PLACES, RESOLUTION, SHAPES, SIZES, Scene, Toy


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance function of a polygon, negative inside (I. Quilez, "2D distance functions")."""
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
    """Signed distance in pixels to the outline of a shape of radius `r` around the origin; negative inside."""
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
    """Signed distance in pixels to the region of the second colour; positive inside.

    Every region is at least two latent cells wide. No pattern with its colours swapped is another pattern.
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
    """Antialiasing: the covered part of a pixel, from 0 half a pixel outside to 1 half a pixel inside."""
    return np.clip(depth + 0.5, 0, 1)[..., None]


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Renders a scene, (64, 64, 3) float32 in [0, 1]; `rng` jitters positions and sizes and adds noise to photos."""
    grid = np.arange(RESOLUTION, dtype=np.float32) + 0.5
    if scene.style == "pixel art":
        grid = grid // 3 * 3 + 1.5  # all pixels of a 3 x 3 block have the coordinates of its centre
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
    """Each toy with its centre and radius in pixels, jittered by `rng`."""
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
    """The segmentation mask of the toys, for the image that `draw` renders with an equal `rng`, (64, 64) float32:
    1 inside a toy, 0 outside, antialiased."""
    grid = np.arange(RESOLUTION, dtype=np.float32) + 0.5
    x, y = np.meshgrid(grid, grid)
    covers = [_cover(-shape_distance(toy.shape, x - cx, y - cy, r)) for toy, cx, cy, r in placements(scene, rng)]
    return np.maximum.reduce(covers)[..., 0].astype(np.float32)


def _draw_toy(picture: np.ndarray, toy: Toy, x: np.ndarray, y: np.ndarray, r: float, style: str) -> np.ndarray:
    outline = shape_distance(toy.shape, x, y, r)
    # The centre of a moon lies outside it: its pattern is centred on the crescent.
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
