"""Several new words learned together, from images that show several things (MCPL, arXiv 2310.12274).

    words = [TrainingWrapper(model, config) for config in configs]
    for step in learn_together(words, images, ["a <cat>", "a <dog>", "a <cat> next to a <dog>"]): ...

Words that are learned one by one have never met; where an image shows both, its caption says which is which.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from minti.adapters.compose import Compose
from minti.model import StableDiffusion
from minti.personalization.removal import begin_anew, remove_word
from minti.runs.messages import short_repr
from minti.textual_inversion import Batch, Images, prepare_for_textual_inversion
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
        self.share()

    def share(self) -> None:
        """The state of all is in this one, so that a checkpoint has it."""
        groups = iter(self.param_groups)
        for one in self.optimizers:
            one.state, one.param_groups = self.state, [next(groups) for _ in one.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, which replaces state and groups."""
        super().load_state_dict(state_dict)
        self.share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def learn_together(words: Sequence[TrainingWrapper], images: Images, captions: Sequence[str]) -> Trainer:
    """Textual inversion of several words in the same steps; the run is the first word's, with its settings.

    captions: one for each image, which say the words that it shows.
    Raises ValueError: two words of the same name, of different models, or with vectors by layer or timestep; a word
    that no caption says, or that cannot be new; or the embedding row masking, `row_update = "restore"`, which trains
    one matrix for one word. None of the words is in the vocabulary then."""
    check_together(words, captions)
    first, configs = words[0], [replace(word.config, captions=captions) for word in words]
    model, told = first.model, configs[0]
    data = told.training_images(model, images)  # before anything is changed
    optimizers: list[Optimizer] = []
    for word in reversed(words):  # the last was added behind the others
        if word.subject in model.learning:
            begin_anew(word)
    try:
        for word in words:
            optimizers.append(prepare_for_textual_inversion(word))
            word.detach()
    except (OSError, ValueError):
        for word in words[: len(optimizers)]:
            remove_word(model, word.subject)
        raise

    def loss(model: StableDiffusion, batch: Batch) -> Tensor:
        others = [config.context(model) for config in configs[1:] if config.context_weight]
        return sum(others, told.loss(model, batch))

    first.config, adapter = told, Compose(*(word.embedding for word in words))
    first.metadata["words"] = ", ".join(f"{w.subject} {w.config.num_vectors} {w.learning_rate:g}" for w in words)
    draw, steps = partial(data.batch, first.batch_size, first.prompts), told.steps or told.max_steps
    return first.begin(adapter, data, draw, loss, Optimizers(optimizers), steps)


def check_together(words: Sequence[TrainingWrapper], captions: Sequence[str]) -> None:
    """Raises ValueError: see `learn_together`."""
    if not words:
        raise ValueError("there is no word to learn")
    if isinstance(captions, str) or not hasattr(captions, "__len__"):
        raise ValueError(f"captions = {short_repr(captions)}; expected a list with one for each image")
    names = [word.subject for word in words]
    tables = [word.subject for word in words if getattr(word.config, "has_table", False)]
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)}: two of the words have the same name")
    for word in words:
        if not any(word.subject.lower() in caption.lower() for caption in captions):
            raise ValueError(f"no caption says {word.subject}")
        if word.config.row_update != "new_rows" or word.model is not words[0].model:
            raise ValueError(f"{word.subject}: several words learn in one model, and by row_update = 'new_rows' only")
    if len(tables) > 1:
        raise ValueError(f"{' and '.join(tables)}: only one of several words can have vectors by layer or timestep")
