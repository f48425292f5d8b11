"""Several new words learned together, from images that show several things (MCPL, arXiv 2310.12274).

    words = [TrainingWrapper(model, config) for config in configs]
    for step in learn_together(words, images, ["a <cat>", "a <dog>", "a <cat> next to a <dog>"]): ...

Words that are learned one by one have never met; where an image shows both, its caption says which is which.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.optim import Optimizer

from minti.adapters.compose import Compose
from minti.textual_inversion import Images, prepare_for_textual_inversion
from minti.training import Trainer
from minti.wrapper import TrainingWrapper


class Optimizers(Optimizer):
    """Several optimizers as one, whose groups are those of all."""

    def __init__(self, optimizers: Sequence[Optimizer]):
        super().__init__(
            [parameter for one in optimizers for group in one.param_groups for parameter in group["params"]], {}
        )
        self.optimizers = optimizers
        self.param_groups = [group for one in optimizers for group in one.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def learn_together(words: Sequence[TrainingWrapper], images: Images, captions: Sequence[str]) -> Trainer:
    """Textual inversion of several words in the same steps; the run is the first word's, with its settings.

    captions: one for each image, which say the words that it shows.
    Raises ValueError: two words of the same name or of different models, a word that no caption says, or the embedding
    row masking, `row_update = "restore"`, which trains one matrix for one word."""
    first, names = words[0], [word.subject for word in words]
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)}: two of the words have the same name")
    for word in words:
        if not any(word.subject in caption for caption in captions):
            raise ValueError(f"no caption says {word.subject}")
        if word.config.row_update != "new_rows" or word.model is not first.model:
            raise ValueError(f"{word.subject}: several words learn in one model, and by row_update = 'new_rows' only")
    model, told = first.model, replace(first.config, captions=captions)
    data = told.training_images(model, images)  # before anything is changed
    optimizers = []
    for word in words:
        optimizers.append(prepare_for_textual_inversion(word))
        word.detach()
    first.config, adapter = told, Compose(*(word.embedding for word in words))
    draw, steps = partial(data.batch, first.batch_size, first.prompts), told.steps or told.max_steps
    return first.begin(adapter, data, draw, told.loss, Optimizers(optimizers), steps)
