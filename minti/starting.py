"""Which known word should a new one begin as? All are ranked at once by a gradient, and the best few are tried.

To first order the loss changes by g . (v - v_0) where a row moves from v_0 to v, with g the gradient at v_0: a single
one ranks a whole vocabulary (HotFlip, arXiv 1712.06751), and forward passes say who is right. The word that they
find is the next v_0, since a gradient knows its neighbourhood best.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from minti.evaluation.neighbours import known_words
from minti.learning.pictures import Concept
from minti.learning.progress import FixedSet
from minti.learning.rows import NewRows
from minti.learning.settings import TextualInversionConfig, TrainingWrapper
from minti.machine.processes import add_up
from minti.model import StableDiffusion

SIZE = 16  # pictures, each with its own timestep and noise


def choose_initializer(
    model: StableDiffusion,
    config: TextualInversionConfig,
    images: Sequence[Image.Image] | Tensor,
    tried: int = 16,
    rounds: int = 3,
) -> list[tuple[str, float]]:
    """The words that describe the pictures best, of all that are one token; nothing in the model changes.

    Args:
        config: its `templates`, `seed` and `horizontal_flip` are those of the training that follows.
        images: as for `textual_inversion`.
        tried: how many of the best by first order are tried in each round.
        rounds: at most; the first begins at the mean of all words, the others at the best word so far.

    Returns:
        (word, loss over fixed pictures, timesteps and noise) of those tried, the best first.

    Raises:
        ValueError: the vocabulary has no word; there are no pictures.
    """
    words = {word: index for word, index in known_words(model).items() if len(word) > 1 and word.isalpha()}
    if not words:
        raise ValueError("the vocabulary has no word to begin with; begin with a random row")
    wrapper = TrainingWrapper(model, config)
    for part in (model.unet, model.vae, model.text_encoder):
        part.requires_grad_(False)
    concept = Concept(model, images, config.horizontal_flip)
    fixed = FixedSet(wrapper, concept, SIZE, torch.Generator().manual_seed(config.seed))
    names, best = list(words), None
    losses: dict[str, float] = {}
    for _ in range(rounds):
        changes = first_order_changes(fixed, words, best)
        for i in changes.topk(min(tried, len(words)), largest=False).indices.tolist():
            if names[i] not in losses:
                losses[names[i]] = fixed.loss([template.replace("{}", names[i]) for template in wrapper.templates])
        if (found := min(losses, key=losses.__getitem__)) == best:
            break
        best = found
    return sorted(losses.items(), key=lambda item: item[1])


def first_order_changes(fixed: FixedSet, words: dict[str, int], start: str | None) -> Tensor:
    """What each word would change the fixed loss by, to first order, (words,) float32.

    Args:
        words: and their token ids.
        start: the word that stands there; None: the mean of all.
    """
    wrapper, model = fixed.wrapper, fixed.wrapper.model
    embedding, word = model.text_encoder.get_input_embeddings(), start or next(iter(words))
    vocabulary = embedding.weight[list(words.values())].float()  # v d
    here = vocabulary.mean(dim=0) if start is None else embedding.weight[words[start]].float()
    place = NewRows(embedding, words[word], words[word] + 1)  # in which `here` stands for a while
    try:
        with torch.no_grad():
            place.values.copy_(here[None])
        prompts = [template.replace("{}", word) for template in wrapper.templates]
        for _, loss in fixed.each(prompts, 1):
            (loss / len(fixed.latents)).backward()
        gradient = torch.zeros_like(here) if place.gradient is None else place.gradient[0]
        return (vocabulary - here) @ add_up(gradient)
    finally:
        place.detach()
