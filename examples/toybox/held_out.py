"""The toys that training never shows, and learning them: what the toybox's measures of learned words share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import minti
import world
from draw_concepts import concept_pictures
from minti.images import from_bytes
from minti.personalization.initializer_search import choose_initializer
from minti.personalization.num_vectors_search import NumVectorsSearch

TOYS = {"test": world.TEST_TOYS, "tuning": world.TUNING_TOYS, "all": world.HELD_OUT}


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """The world's pictures, rounded to 8 bits as a file would be, as pixels in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.stack(pictures)).mul(255).round()).permute(0, 3, 1, 2)


def pixels_of(toy: world.Toy) -> Tensor:
    """The five pictures to learn a toy from, (5, 3, 64, 64) in [-1, 1]."""
    return to_pixels(concept_pictures(toy))


def wrappers_to_train(
    model: minti.StableDiffusion,
    name: str,
    pictures: Tensor,
    vectors: int | str = 1,
    initializer: str = "toy",
    seed: int = 0,
) -> NumVectorsSearch | list[minti.TrainingWrapper]:
    """One, or with `vectors` "auto" one after another; `initializer` may be "auto", too."""
    grow = vectors == "auto"
    config = minti.TextualInversionConfig(name, initializer, 1 if grow else vectors, seed=seed)
    if initializer == "auto":
        config = replace(config, initializer_token=choose_initializer(model, config, pictures)[0][0])
    return NumVectorsSearch(model, config, pictures) if grow else [minti.TrainingWrapper(model, config)]
