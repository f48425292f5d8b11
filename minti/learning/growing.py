"""How many rows does a word need? One more, as long as it lowers the fixed loss by more than chance does.

One token can be too little for what a text encoder and a UNet have never seen as one; several, and adding them on the
way, are tried in arXiv 2208.01618, section 5. More than needed obey the rest of a prompt less (arXiv 2512.13672). So a
word begins with few rows, is learned, is learned anew with another, and keeps that only if it paid.
Anew: rows that have settled on a wrong neighbour pull a further one after them.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minti.learning.pictures import Concept, Images
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
        if math.isnan(self.gain):
            return loss
        return f"{loss}, lower by {self.gain:.4f} +- {self.error:.4f}: {'kept' if self.kept else 'not kept'}"


class Growing:
    """A word that grows until it suffices. Iterating gives wrappers to train, each with a row more than the last.

        for wrapper in (word := Growing(model, config, pictures)):
            for state in minti.textual_inversion(wrapper, pictures):
                ...
        minti.save_embeddings(word.best, path)

    It begins with `config.num_vectors` rows and has `most` at last; `size` pictures decide. `decisions` are made one
    for each wrapper that was trained, and `best` is the wrapper whose rows were kept. After the last the model knows
    the word with these rows, and no more. Until then its tokenizer is a copy, since a tokenizer cannot forget, and no
    other word may be added. Raises ValueError: `most` is too few; there are no pictures.
    """

    def __init__(
        self, model: StableDiffusion, config: TextualInversionConfig, images: Images, most: int = 4, size: int = 128
    ):
        if most < config.num_vectors:
            raise ValueError(f"the word begins with {config.num_vectors} rows, and {most} are the most; raise `most`")
        self.model, self.config, self.images, self.most, self.size = model, config, images, most, size
        self.decisions: list[Decision] = []
        self.best: TrainingWrapper | None = None
        self._tokenizer = model.tokenizer  # which learns the word in the end
        self._known = model.text_encoder.get_input_embeddings().num_embeddings

    def __iter__(self) -> Iterator[TrainingWrapper]:
        # Other draws than those by which a run chooses its best rows.
        generator = torch.Generator().manual_seed(self.config.seed + 2)
        fixed = FixedSet(Concept(self.model, self.images, self.config.horizontal_flip), self.size, generator)
        before, rows = None, None
        for count in range(self.config.num_vectors, self.most + 1):
            self.model.tokenizer = copy.deepcopy(self._tokenizer)
            wrapper = TrainingWrapper(self.model, replace(self.config, num_vectors=count))
            yield wrapper
            losses = losses_of(self.model, fixed, wrapper.prompts)
            gain, error = paired(before, losses)
            kept = before is None or gain > 2 * error
            self.decisions.append(Decision(count, losses.mean().item(), gain, error, kept))
            learned = wrapper.rows.values.detach().clone()
            self._forget(count)
            if not kept:
                break
            self.best, before, rows = wrapper, losses, learned
        self.best.tokenizer = self.model.tokenizer = self._tokenizer
        self.model.add_word(self.config.placeholder_token, rows)

    def _forget(self, count: int) -> None:
        """Takes the word's `count` rows out of the vocabulary. Raises ValueError: another word was added behind it."""
        last = self.model.text_encoder.get_input_embeddings().num_embeddings
        if last != self._known + count:
            raise ValueError(
                f"the vocabulary has grown by {last - self._known} rows instead of {count}: no word can be added while "
                f"{self.config.placeholder_token} grows"
            )
        self.model.text_encoder.resize_token_embeddings(self._known, mean_resizing=False)
        del self.model.words[self.config.placeholder_token]


@torch.no_grad()
def losses_of(model: StableDiffusion, fixed: FixedSet, prompts: Sequence[str]) -> Tensor:
    """The loss of every picture of a fixed set by itself, (n,) float32; the same in every process."""
    losses = torch.zeros(len(fixed), device=fixed.latents.device)
    for place, batch in fixed.batches(prompts, 1):
        losses[place] = word_loss(model, batch)
    return add_up(losses)


def paired(before: Tensor | None, after: Tensor) -> tuple[float, float]:
    """The mean of `before` - `after`, (n,) each, and its standard error: two means of the same pictures, timesteps and
    noise differ by far less than either varies."""
    if before is None:
        return math.nan, math.nan
    difference = before - after
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()
