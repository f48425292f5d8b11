"""Draws the bundled concepts: five photos of each toy that training never shows, in a folder named after its looks; and
two of them alone and side by side, with captions.

python examples/toybox/draw_concepts.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from painting import draw
from world import BACKGROUNDS, PLACES, SIZES, TEST_TOYS, Scene, Toy

EXAMPLES = Path(__file__).resolve().parent.parent
CONCEPTS, TOGETHER = EXAMPLES / "concepts", EXAMPLES / "together"
CAPTIONS = ("a photo of a <first>", "a photo of a <second>", "a photo of a <first> next to a <second>")


def concept_name(toy: Toy) -> str:
    """The folder's name: "red-star-blue-stripe"."""
    return f"{toy.main}-{toy.shape}-{toy.second}-{toy.pattern}"


def concept_scenes(toy: Toy, count: int = 5) -> list[Scene]:
    """Photos of the toy, each at another place and on another background; both sizes."""
    places, backgrounds, sizes = list(PLACES), list(BACKGROUNDS), list(SIZES)
    return [
        Scene((toy,), sizes[i % 2], places[i % len(places)], backgrounds[i % len(backgrounds)], "photo")
        for i in range(count)
    ]


def concept_pictures(toy: Toy, count: int = 5) -> list[np.ndarray]:
    """The images of `concept_scenes`."""
    return [draw(scene, np.random.default_rng((4, i))) for i, scene in enumerate(concept_scenes(toy, count))]


def pictures_together(first: Toy, second: Toy, count: int = 5) -> list[tuple[np.ndarray, str]]:
    """Photos of either toy, then of both side by side, with their captions."""
    backgrounds = list(BACKGROUNDS)
    both = [
        Scene((first, second), "small", next(iter(PLACES)), backgrounds[i % len(backgrounds)], "photo")
        for i in range(count)
    ]
    photos = [draw(scene, np.random.default_rng((5, i))) for i, scene in enumerate(both)]
    each = (concept_pictures(first, count), concept_pictures(second, count), photos)
    return [(picture, caption) for pictures, caption in zip(each, CAPTIONS) for picture in pictures]


def save(picture: np.ndarray, path: Path) -> None:
    """Writes (height, width, 3) in [0, 1] as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


def main() -> None:
    """Writes examples/concepts/NAME/0.png .. 4.png, and examples/together/00.png, 00.txt .. 14.png, 14.txt."""
    for toy in TEST_TOYS:
        for i, picture in enumerate(concept_pictures(toy)):
            save(picture, CONCEPTS / concept_name(toy) / f"{i}.png")
    for i, (picture, caption) in enumerate(pictures_together(*TEST_TOYS[:2])):
        save(picture, TOGETHER / f"{i:02}.png")
        (TOGETHER / f"{i:02}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
