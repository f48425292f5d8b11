"""Chooses the number of embedding vectors of a word, by a paired test on the validation loss.

One vector can be too little for what the text encoder has never seen; several, and adding them on the way, are tried in
arXiv 2208.01618, section 5. More than needed obey the rest of a prompt less (arXiv 2512.13672). So a word with few
vectors is learned anew with one more, which is kept only if it lowers the loss by more than chance does. Anew: vectors
that have settled on a wrong neighbour pull a further one after them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.personalization.removal import take_out
from minti.runs.distributed import add_up
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import Images, TextualInversionConfig, TrainingImages, TrainingWrapper, batch_loss


class Decision(NamedTuple):
    """What a further run was worth: its validation loss, how much lower that is than the best before and the standard
    error of that (NaN for the first), and whether the run was kept."""

    label: str
    loss: float
    gain: float
    error: float
    kept: bool

    def __str__(self) -> str:
        loss = f"{self.label}: loss {self.loss:.4f}"
        gain = f", lower by {self.gain:.4f} +- {self.error:.4f}: {'kept' if self.kept else 'not kept'}"
        return loss if math.isnan(self.gain) else loss + gain


class NumVectorsSearch:
    """Learns a word with more and more vectors until another one no longer pays.

        for wrapper in (search := NumVectorsSearch(model, config, images)):
            for state in minti.monitored(minti.textual_inversion(wrapper, images)):
                ...
        minti.save_embeddings(search.best, path)

    It starts with `config.num_vectors` vectors and has `most` at last; `size` validation images decide. There is one of
    `decisions` for each wrapper that was trained, and `best` is the wrapper whose vectors are kept; in the end, and
    where the caller leaves the loop, the model knows the word with these. Raises ValueError: `most` is too few.
    """

    def __init__(
        self, model: StableDiffusion, config: TextualInversionConfig, images: Images, most: int = 4, size: int = 128
    ):
        self.check_most(most, config)
        self.model, self.config, self.most = model, config, most
        generator = torch.Generator().manual_seed(config.seed + 2)  # other draws than those that choose a run's best
        self.validation = ValidationSet((config.training_images or TrainingImages)(model, images), size, generator)
        self.decisions: list[Decision] = []
        self.best: TrainingWrapper | None = None

    def __iter__(self) -> Iterator[TrainingWrapper]:
        model, word = self.model, self.config.placeholder_token
        others, losses, vectors = [other for other in model.words if other != word], None, None
        try:
            for config in self.configs():
                wrapper = TrainingWrapper(model, config)
                if self.decisions and word in model.learning:
                    self.forget()
                yield wrapper
                if [other for other in model.words if other != word] != others:
                    raise ValueError(f"no word can be added while the vectors of {word} are chosen")
                wrapper.detach()
                with wrapper.embedding.attached(model):  # without it the model has but the mean of a table
                    new = losses_of(model, self.validation, wrapper.prompts, self.config.loss or batch_loss)
                gain, error = paired(losses, new)
                kept = losses is None or self.pays(gain, error)
                self.decisions.append(Decision(self.label(config), new.mean().item(), gain, error, kept))
                if kept:
                    self.best, losses, vectors = wrapper, new, wrapper.embedding.values.detach().clone()
                elif self.stops:
                    break
        finally:
            if self.best is not None and (self.best.embedding is not model.learning.get(word)):
                self.forget()
                model.add_word(word, vectors)
                model.learning[word] = self.best.embedding

    stops = True  # with the first that does not pay

    def configs(self) -> Iterator[TextualInversionConfig]:
        """What is tried."""
        for count in range(self.config.num_vectors, self.most + 1):
            yield replace(self.config, num_vectors=count)

    def check_most(self, most: int, config: TextualInversionConfig) -> None:
        """Raises ValueError: it is too few."""
        if most < config.num_vectors:
            begins = f"the word starts with {config.num_vectors} vectors"
            raise ValueError(f"{begins}, and {most} are the most; raise `most`")

    def label(self, config: TextualInversionConfig) -> str:
        """What a config has that others have not."""
        return f"{config.num_vectors} {'vector' if config.num_vectors == 1 else 'vectors'}"

    def pays(self, gain: float, error: float) -> bool:
        """Whether another vector is kept, from how much it lowers the loss, and that gain's standard error."""
        return gain > 2 * error

    def forget(self) -> None:
        """Takes the word out of the vocabulary again."""
        word = self.config.placeholder_token
        if word in self.model.learning:
            take_out(self.model, word)


class Restarts(NumVectorsSearch):
    """Learns a word several times, each from a seed of its own, and keeps the run of the lowest validation loss.

    One vector can settle where it says the wrong thing, by the images and the noise that it met first; the loss on
    `size` draws that are the same for all runs tells such a word apart. Use it as `NumVectorsSearch`; `most` is how
    many runs there are.
    """

    stops = False

    def configs(self) -> Iterator[TextualInversionConfig]:
        """The config with one seed after another."""
        for i in range(self.most):
            yield replace(self.config, seed=(self.config.seed + i) % 2**63)

    def check_most(self, most: int, config: TextualInversionConfig) -> None:
        """Raises ValueError: there is no run."""
        if most < 1:
            raise ValueError(f"most = {most} runs; expected 1 or more")

    def label(self, config: TextualInversionConfig) -> str:
        """Its seed."""
        return f"seed {config.seed}"

    def pays(self, gain: float, error: float) -> bool:
        """Whether it is better at all."""
        return gain > 0


@torch.no_grad()
def losses_of(
    model: StableDiffusion, validation: ValidationSet, prompts: Sequence[str], loss: Callable[..., Tensor] = batch_loss
) -> Tensor:
    """The loss of every image of a validation set by itself, (n,) float32; the same in every process."""
    losses = torch.zeros(len(validation), device=validation.latents.device)
    for place, batch in validation.batches(prompts, 1):
        losses[place] = loss(model, batch)
    return add_up(losses)


def paired(before: Tensor | None, after: Tensor) -> tuple[float, float]:
    """The mean of `before` - `after`, (n,) each, and its standard error: two means of the same images, timesteps and
    noise differ by far less than either varies."""
    if before is None:
        return math.nan, math.nan
    difference = before - after
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()
