"""Draws the bundled concepts: five photos of each toy that training never shows, in a folder named after its looks.

python examples/toybox/draw_concepts.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from painting import draw
from world import BACKGROUNDS, PLACES, SIZES, TEST_TOYS, Scene, Toy

CONCEPTS = Path(__file__).resolve().parent.parent / "concepts"


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


def main() -> None:
    """Writes examples/concepts/NAME/0.png .. 4.png."""
    for toy in TEST_TOYS:
        folder = CONCEPTS / concept_name(toy)
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(concept_pictures(toy)):
            Image.fromarray((picture * 255).round().astype(np.uint8)).save(folder / f"{i}.png")


if __name__ == "__main__":
    main()
