"""Search for the best initializer token: all known words are ranked by one gradient (HotFlip), and the best are tried.

To first order the loss changes by g . (v - v_0) where a row moves from v_0 to v, with g the gradient at v_0: a single
one ranks a whole vocabulary (HotFlip, arXiv 1712.06751), and forward passes say who is right. The word that they
find is the next v_0, since a gradient knows its neighbourhood best.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.personalization.vocabulary import known_words
from minti.runs.distributed import add_up
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import (
    Images,
    LearnedEmbedding,
    TextualInversionConfig,
    TrainingImages,
    TrainingWrapper,
    batch_loss,
)

SIZE = 16  # validation images, each with its own timestep and noise


def choose_initializer(
    model: StableDiffusion, config: TextualInversionConfig, images: Images, tried: int = 16, rounds: int = 3
) -> list[tuple[str, float]]:
    """The initializer tokens that describe the images best; nothing in the model changes.

    The config is that of the training that follows. In each of so many `rounds` at most, so many of the best by first
    order are `tried`; the first round begins at the mean of all words, the others at the best word so far.

    Returns (word, validation loss) of those tried, the best first. Raises ValueError: the
    vocabulary has no word; there are no images.
    """
    words = {word: index for word, index in known_words(model).items() if len(word) > 1 and word.isalpha()}
    if not words:
        raise ValueError("the vocabulary has no word to start from; start from random vectors")
    wrapper, generator = TrainingWrapper(model, config), torch.Generator().manual_seed(config.seed)
    model.freeze()
    validation = ValidationSet((config.training_images or TrainingImages)(model, images), SIZE, generator)
    names, best, losses = list(words), None, {}
    loss = partial(config.loss or batch_loss, model)
    for _ in range(rounds):
        changes = first_order_changes(model, validation, words, wrapper.templates, best)
        for i in changes.topk(min(tried, len(words)), largest=False).indices.tolist():
            if names[i] not in losses:
                prompts = [template.replace("{}", names[i]) for template in wrapper.templates]
                losses[names[i]] = validation.mean(loss, prompts, wrapper.batch_size)
        if (found := min(losses, key=losses.__getitem__)) == best:
            break
        best = found
    return sorted(losses.items(), key=lambda item: item[1])


def first_order_changes(
    model: StableDiffusion,
    validation: ValidationSet,
    words: dict[str, int],
    templates: Sequence[str],
    start: str | None,
) -> Tensor:
    """What each of the `words` would change the validation loss by, to first order, (words,) float32.
    `start`: the word that stands in the templates now; None: the mean of all."""
    weight, name = model.text_encoder.get_input_embeddings().weight, start or next(iter(words))
    vocabulary = weight[list(words.values())].float()  # v d
    here = vocabulary.mean(dim=0) if start is None else weight[words[start]].float()
    word = LearnedEmbedding(model.text_encoder.get_input_embeddings(), [words[name]])
    word.values.data.copy_(here[None])  # `here` stands in the place of a known word for a while
    with word.attached(model):
        for _, batch in validation.batches([template.replace("{}", name) for template in templates], 1):
            (batch_loss(model, batch) / len(validation)).backward()
    gradient = torch.zeros_like(here) if word.values.grad is None else word.values.grad[0]
    return (vocabulary - here) @ add_up(gradient)
