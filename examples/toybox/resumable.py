"""Resumable training: checkpoints, a cosine learning rate and an exponential moving average (EMA), around minti's loop.

`train_stage` trains a whole network from scratch, as the toybox's stages do; `resumable` goes round any `Trainer`.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from minti.adapter import Adapter
from minti.runs.checkpoints import read
from minti.runs.files import replacing
from minti.training import Trainer


class Network(Adapter):
    """A network that is trained as a whole, and the moving average of its weights: model and adapter of a `Trainer`.

    average <- decay average + (1 - decay) weights, where the decay of the n-th step is min(ema_decay, n / (n + 9)), and
    the first step's weights are the first average. Batch norm's statistics are averaged too.
    """

    name = "the network"
    dtype = torch.float32

    def __init__(self, module: nn.Module, ema_decay: float):
        super().__init__()

        def update(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
            decay = min(ema_decay, (updates.item() + 1) / (updates.item() + 10))
            for average, value in zip(averages, values):
                if average.is_floating_point():
                    average.lerp_(value, 1 - decay)
                else:
                    average.copy_(value)

        self.module = module
        self.average = AveragedModel(module, multi_avg_fn=update, use_buffers=True).eval()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    def trainable(self) -> list[nn.Parameter]:
        """The network's weights, without the average."""
        return list(self.module.parameters())


def train_stage(
    name: str,
    folder: Path,
    module: nn.Module,
    loss_fn: Callable[[int, torch.Generator], Tensor],
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.0,
    look: Callable[[nn.Module], object] | None = None,
    save_every: float = 60.0,
    look_every: float = 300.0,
) -> None:
    """Trains a network in place with AdamW; an interrupted stage continues from its checkpoint.

    name: of the checkpoint, `folder/name.pt`, and the progress bar.
    loss_fn: (step, generator) -> loss; all randomness comes from the generator, which is seeded with the step.
    steps: optimizer steps in all, with a warm-up of 2 % of them and a cosine to zero.
    ema_decay: of the moving average of the weights, which the network has in the end; 0: the last weights.
    look: saves sample images; called with a copy of the network that has the averaged weights.
    save_every, look_every: seconds between checkpoints, and between looks.
    Raises ValueError: the checkpoint is of a stage with other steps or another learning rate, such as a trial run.
    """
    network, generator = Network(module.train(), ema_decay), torch.Generator()
    optimizer = torch.optim.AdamW(network.trainable(), lr=learning_rate, weight_decay=1e-4, fused=True)
    trainer = Trainer(
        network,
        network,
        lambda generator: trainer.number - 1,  # a batch is its number, and seeds all that is random in it
        lambda _, number: loss_fn(number, generator.manual_seed(number)),
        optimizer,
        steps,
        generator,
        cosine(steps),
        max_norm=1.0,
    )
    settings, shown_at = {"steps": steps, "learning_rate": learning_rate}, time.monotonic()
    for _ in resumable(trainer, folder / f"{name}.pt", settings, name, save_every=save_every):
        network.average.update_parameters(module)
        if look is not None and (trainer.number == steps or time.monotonic() - shown_at > look_every):
            look(network.average.module)
            shown_at = time.monotonic()
    module.load_state_dict(network.average.module.state_dict())
    module.eval()


def cosine(steps: int, warmup: float | None = None) -> Callable[[int], float]:
    """Learning rate schedule: linear warm-up (default: 2 % of the steps), times a cosine from 1 to 0."""
    warmup = 0.02 * steps if warmup is None else warmup
    return lambda taken: min(1.0, (taken + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * taken / steps))


def resumable(
    trainer: Trainer,
    path: Path,
    settings: dict[str, float],
    name: str = "steps",
    quiet: bool | None = None,
    save_every: float = 60.0,
) -> Iterator[float]:
    """Takes the steps that its checkpoint has not taken yet, with a progress bar; yields the smoothed loss after each.

    A checkpoint is written every `save_every` seconds and after the last step, with what the caller did after the step.

    `settings`: what must be equal for a run to continue. Raises ValueError: the checkpoint is damaged, or of a run with
    other settings. OSError: it cannot be written.
    """
    if path.exists():
        resume(trainer, path, settings)
    interval = 1 if sys.stderr.isatty() else 30
    bar = tqdm(trainer, name, trainer.steps, initial=trainer.number, mininterval=interval, disable=quiet)
    smooth, saved_at = None, time.monotonic()
    for step in bar:
        smooth = step.loss if smooth is None else 0.99 * smooth + 0.01 * step.loss
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        yield smooth
        if trainer.number == trainer.steps or time.monotonic() - saved_at > save_every:
            save_checkpoint(trainer, path, settings)
            saved_at = time.monotonic()


def save_checkpoint(trainer: Trainer, path: Path, settings: dict[str, float]) -> None:
    """Writes a training checkpoint atomically."""
    state = {"adapter": trainer.adapter.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    state["generator"] = trainer.generator.get_state()
    with replacing(path) as temporary:
        torch.save({"step": trainer.number, "identity": settings, "state": state}, temporary)


def resume(trainer: Trainer, path: Path, settings: dict[str, float]) -> None:
    """Continues a training run from its checkpoint. Raises ValueError: it is damaged, or has other settings."""
    try:
        saved = read(path)
        if saved["identity"] == settings:
            trainer.adapter.load_state_dict(saved["state"]["adapter"])
            trainer.optimizer.load_state_dict(saved["state"]["optimizer"])
            trainer.generator.set_state(saved["state"]["generator"])
            trainer.number = trainer.completed = saved["step"]
    except Exception:  # torch's reader fails in all manners
        raise ValueError(f"{path} is damaged, or of another version of minti; delete it to begin anew") from None
    if saved["identity"] != settings:
        was, now = (", ".join(f"{key} {value}" for key, value in s.items()) for s in (saved["identity"], settings))
        raise ValueError(
            f"{path} is the checkpoint of another run, with {was}; this run has {now}. "
            "Give the same settings or another folder, or delete the file"
        )
