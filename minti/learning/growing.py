"""How many rows does a word need? One more, as long as it lowers the fixed loss by more than chance does.

One token can be too little for what a text encoder and a UNet have never seen as one; several, and adding them on the
way, are tried in arXiv 2208.01618, section 5. More than needed obey the rest of a prompt less (arXiv 2512.13672). So a
word with few rows is learned anew with another, and keeps that only if it paid. Anew: rows that have settled on a wrong
neighbour pull a further one after them.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minti.learning.losses import SQUARES, Measure
from minti.learning.pictures import Images
from minti.learning.preparation import concept_of
from minti.learning.settings import TextualInversionConfig, TrainingWrapper
from minti.learning.textual_inversion import word_loss
from minti.learning.watching import FixedSet
from minti.machine.processes import add_up
from minti.model import StableDiffusion


class Decision(NamedTuple):
    """What one more row was worth: with so many rows the mean loss over the pictures that decide, how much lower it is
    than with a row less and the standard error of that (NaN for the first), and whether the gain was above two of them.
    """

    rows: int
    loss: float
    gain: float
    error: float
    kept: bool

    def __str__(self) -> str:
        loss = f"{self.rows} {'row' if self.rows == 1 else 'rows'}: loss {self.loss:.4f}"
        gain = f", lower by {self.gain:.4f} +- {self.error:.4f}: {'kept' if self.kept else 'not kept'}"
        return loss if math.isnan(self.gain) else loss + gain


class Growing:
    """A word that grows until it suffices. Iterating gives wrappers to train, each with a row more than the last.

        for wrapper in (word := Growing(model, config, pictures)):
            for state in minti.textual_inversion(wrapper, pictures):
                ...
        minti.save_embeddings(word.best, path)

    It begins with `config.num_vectors` rows and has `most` at last; `size` pictures decide. There is one of `decisions`
    for each wrapper that was trained, and `best` is the wrapper whose rows were kept. After the last the model knows
    the word with these rows, and no more. Until then its tokenizer is a copy, since a tokenizer cannot forget, and no
    other word may be added. Raises ValueError: `most` is too few; there are no pictures.
    """

    def __init__(
        self, model: StableDiffusion, config: TextualInversionConfig, images: Images, most: int = 4, size: int = 128
    ):
        if most < config.num_vectors:
            raise ValueError(f"the word begins with {config.num_vectors} rows, and {most} are the most; raise `most`")
        self.model, self.config, self.most = model, config, most
        generator = torch.Generator().manual_seed(config.seed + 2)  # not the draws by which a run chooses its best rows
        self.fixed = FixedSet(concept_of(model, config, images), size, generator)
        self.decisions: list[Decision] = []
        self.best: TrainingWrapper | None = None

    def __iter__(self) -> Iterator[TrainingWrapper]:
        model, tokenizer, word = self.model, self.model.tokenizer, self.config.placeholder_token
        known = model.text_encoder.get_input_embeddings().num_embeddings
        before, rows = None, None
        for count in range(self.config.num_vectors, self.most + 1):
            model.tokenizer = copy.deepcopy(tokenizer)
            wrapper = TrainingWrapper(model, replace(self.config, num_vectors=count))
            yield wrapper
            losses = losses_of(model, self.fixed, wrapper.prompts, self.config.measure)
            gain, error = paired(before, losses)
            kept = before is None or gain > 2 * error
            self.decisions.append(Decision(count, losses.mean().item(), gain, error, kept))
            learned = wrapper.rows.values.detach().clone()
            new = model.text_encoder.get_input_embeddings().num_embeddings - known
            if new != count:
                grown = f"the vocabulary has grown by {new} rows instead of {count}"
                raise ValueError(f"{grown}: no word can be added while {word} grows")
            model.text_encoder.resize_token_embeddings(known, mean_resizing=False)
            del model.words[word]
            if not kept:
                break
            self.best, before, rows = wrapper, losses, learned
        self.best.tokenizer = model.tokenizer = tokenizer
        model.add_word(word, rows)


@torch.no_grad()
def losses_of(model: StableDiffusion, fixed: FixedSet, prompts: Sequence[str], measure: Measure = SQUARES) -> Tensor:
    """The loss of every picture of a fixed set by itself, (n,) float32; the same in every process."""
    losses = torch.zeros(len(fixed), device=fixed.latents.device)
    for place, batch in fixed.batches(prompts, 1):
        losses[place] = word_loss(model, batch, measure)
    return add_up(losses)


def paired(before: Tensor | None, after: Tensor) -> tuple[float, float]:
    """The mean of `before` - `after`, (n,) each, and its standard error: two means of the same pictures, timesteps and
    noise differ by far less than either varies."""
    if before is None:
        return math.nan, math.nan
    difference = before - after
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()
