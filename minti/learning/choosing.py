"""Which known word should a new one begin as? All are ranked at once by a gradient, and the best few are tried.

To first order the loss changes by g . (v - v_0) where a row moves from v_0 to v, with g the gradient at v_0: a single
one ranks a whole vocabulary (HotFlip, arXiv 1712.06751), and forward passes say who is right. The word that they
find is the next v_0, since a gradient knows its neighbourhood best.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minti.learning.pictures import Images
from minti.learning.preparation import concept_of
from minti.learning.settings import TextualInversionConfig, TrainingWrapper
from minti.learning.textual_inversion import word_loss
from minti.learning.watching import FixedSet
from minti.machine.processes import add_up
from minti.model import StableDiffusion
from minti.parts.word import Word
from minti.words.known import known_words

SIZE = 16  # pictures, each with its own timestep and noise


def choose_initializer(
    model: StableDiffusion, config: TextualInversionConfig, images: Images, tried: int = 16, rounds: int = 3
) -> list[tuple[str, float]]:
    """The words that describe the pictures best, of all that are one token; nothing in the model changes.

    The config is that of the training that follows. In each of so many `rounds` at most, so many of the best by first
    order are `tried`; the first round begins at the mean of all words, the others at the best word so far.

    Returns (word, loss over fixed pictures, timesteps and noise) of those tried, the best first. Raises ValueError: the
    vocabulary has no word; there are no pictures.
    """
    words = {word: index for word, index in known_words(model).items() if len(word) > 1 and word.isalpha()}
    if not words:
        raise ValueError("the vocabulary has no word to begin with; begin with a random row")
    wrapper, generator = TrainingWrapper(model, config), torch.Generator().manual_seed(config.seed)
    model.freeze()
    fixed = FixedSet(concept_of(model, config, images), SIZE, generator)
    names, best, losses = list(words), None, {}
    loss = partial(word_loss, model, measure=config.measure)
    for _ in range(rounds):
        changes = first_order_changes(model, fixed, words, wrapper.templates, best)
        for i in changes.topk(min(tried, len(words)), largest=False).indices.tolist():
            if names[i] not in losses:
                prompts = [template.replace("{}", names[i]) for template in wrapper.templates]
                losses[names[i]] = fixed.mean(loss, prompts, wrapper.batch_size)
        if (found := min(losses, key=losses.__getitem__)) == best:
            break
        best = found
    return sorted(losses.items(), key=lambda item: item[1])


def first_order_changes(
    model: StableDiffusion, fixed: FixedSet, words: dict[str, int], templates: Sequence[str], start: str | None
) -> Tensor:
    """What each of the `words` would change the fixed loss by, to first order, (words,) float32.
    `start`: the word that stands in the templates now; None: the mean of all."""
    weight, name = model.text_encoder.get_input_embeddings().weight, start or next(iter(words))
    vocabulary = weight[list(words.values())].float()  # v d
    here = vocabulary.mean(dim=0) if start is None else weight[words[start]].float()
    word = Word(here[None], words[name])  # `here` stands in the place of a known word for a while
    with word.inside(model):
        for _, batch in fixed.batches([template.replace("{}", name) for template in templates], 1):
            (word_loss(model, batch) / len(fixed)).backward()
    gradient = torch.zeros_like(here) if word.values.grad is None else word.values.grad[0]
    return (vocabulary - here) @ add_up(gradient)
