"""Test data: the toys that training never shows, with their five images; painted scenes; and edits of such scenes."""

from support.command_line import generators

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import minti
import world
from draw_concepts import concept_pictures
from minti.images import from_bytes
from minti.personalization.initializer_search import choose_initializer
from minti.personalization.num_vectors_search import NumVectorsSearch
from minti.utils import randn
from painting import draw

TOYS = {"test": world.TEST_TOYS, "tuning": world.TUNING_TOYS, "all": world.HELD_OUT}
SHORT = "a photo of a {0.looks}"
LONG = "a photo of a {1.size} {0.main} {0.shape} with a {0.second} {0.pattern} {1.place} on a {1.background} background"


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """The world's images, rounded to 8 bits as a file would be, as pixels in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.stack(pictures)).mul(255).round()).permute(0, 3, 1, 2)


def painted(scenes: Iterable[world.Scene], *seeds: int) -> Tensor:
    """Scenes as the world paints them, (n, 3, 64, 64) in [-1, 1]; the i-th with the randomness of (*seeds, i)."""
    return to_pixels([draw(scene, np.random.default_rng((*seeds, i))) for i, scene in enumerate(scenes)])


def random_scenes(count: int, *seeds: int, **options: object) -> list[world.Scene]:
    """Scenes of `world.random_scene`; the i-th with the randomness of (*seeds, i)."""
    return [world.random_scene(np.random.default_rng((*seeds, i)), **options) for i in range(count)]


def described(scene: world.Scene) -> str:
    """A prompt that names all of a scene."""
    toys = [f"a {toy.looks}" for toy in scene.toys]
    if len(toys) == 1:
        toys = [f"a {scene.size} {scene.toys[0].looks} {scene.place}"]
    return f"{world.STYLES[scene.style]} {' next to '.join(toys)} on a {scene.background} background"


def pixels_of(toy: world.Toy, count: int = 5) -> Tensor:
    """The training images of a toy, five unless more are asked for, (count, 3, 64, 64) in [-1, 1]."""
    return to_pixels(concept_pictures(toy, count))


def wrappers_to_train(
    model: minti.StableDiffusion,
    name: str,
    pictures: Tensor,
    vectors: int | str = 1,
    initializer: str = "toy",
    seed: int = 0,
    **settings: int,
) -> NumVectorsSearch | list[minti.TrainingWrapper]:
    """Textual inversions to run in turn: one, or with `vectors` "auto" several; `initializer` may be "auto", too;
    `settings` are the config's, such as `batch_size`."""
    grow = vectors == "auto"
    word = {"placeholder_token": name, "initializer_token": initializer, "num_vectors": 1 if grow else vectors}
    config = minti.TextualInversionConfig(**word, seed=seed, **settings)
    if initializer == "auto":
        config = replace(config, initializer_token=choose_initializer(model, config, pictures)[0][0])
    return NumVectorsSearch(model, config, pictures) if grow else [minti.TrainingWrapper(model, config)]


@dataclass
class Task:
    """An image editing task: painted scenes whose toys are to have another main colour, and all else is to stay.

    pictures: (b, 3, 64, 64) in [-1, 1]; `latents`, (b, c, h, w), their encodings, and as much `noise`. scenes, colours:
    what they show, and the wanted colours.
    """

    pictures: Tensor
    latents: Tensor
    noise: Tensor
    scenes: list[world.Scene]
    colours: list[str]

    def prompts(self, template: str) -> tuple[list[str], list[str]]:
        """The prompts of the images as they are, and as they are to be."""
        toys = [scene.toys[0] for scene in self.scenes]
        wanted = [replace(toy, main=colour) for toy, colour in zip(toys, self.colours)]
        return tuple([template.format(toy, s) for toy, s in zip(of, self.scenes)] for of in (toys, wanted))


def task(model: minti.StableDiffusion, seeds: Sequence[int]) -> Task:
    """Scene i, its wanted colour, its grain and the noise that it is sampled from are those of seed i."""
    scenes, colours, drawn = [], [], []
    for seed in seeds:
        rng = np.random.default_rng((22, seed))
        scene = replace(world.random_scene(rng, pair_rate=0), style="photo")
        toy = scene.toys[0]
        scenes.append(scene)
        colours.append(str(rng.choice([c for c in world.COLOURS if c not in (toy.main, toy.second)])))
        drawn.append(draw(scene, np.random.default_rng((23, seed))))
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1  # b h w c -> b c h w
    latents = model.scale(model.encode(pictures).mean)
    noise = randn(latents.shape, [generators(seed, 1)[0] for seed in seeds], model.device, model.dtype)
    return Task(pictures, latents, noise, scenes, colours)
