"""A training run as the scripts do it: a progress bar, checkpoints, interruption and resuming, its files."""

from support.command_line import make_writable
from support.curves import read_losses, write_losses
from support.interruption import Interruption

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import minti
from minti.runs import distributed
from minti.runs.files import remove_leftovers


class Learning:
    """A run of textual inversion that saves checkpoints, and the learned word.

    Args:
        args: with `resume`, `checkpoint_every`, `validate_every` and `quiet`.
        wrapper: the model and its config.
        folder: for the results.
        validate: samples the word into a file.
        stage: the end of the names of a further run's table and checkpoints, where several are made.

    Attributes:
        states: of all steps, also those before an interruption.
    """

    keep = 3  # checkpoints
    saves_early = True  # where a run is cut short
    results = ("learned_embeds.safetensors",)

    def __init__(
        self,
        args: argparse.Namespace,
        wrapper: Any,
        folder: Path,
        validate: Callable[[Path], None] = lambda path: None,
        stage: str = "",
    ):
        self.args, self.wrapper, self.folder, self.validate, self.stage = args, wrapper, folder, validate, stage
        self.checkpoints, self.losses = folder / f"checkpoints{stage}", folder / f"losses{stage}.csv"
        if distributed.rank() == 0:
            make_writable(self.checkpoints)  # if that fails, then now
            for each in (folder, self.checkpoints):
                remove_leftovers(each)
        self.checkpoint = minti.load_checkpoint(self.checkpoints) if args.resume else None
        self.states: list[minti.TrainingState] = []
        if self.checkpoint is not None:
            self.states = read_losses(self.losses, self.checkpoint)
        elif args.resume:
            say(f"there is nothing to resume in {self.checkpoints}; beginning anew")
        if self.checkpoint is None and distributed.rank() == 0:
            put_aside(self.checkpoints)

    def run(self, images: list[Image.Image]) -> None:
        """Trains, with a progress bar, to the end or until a signal asks to stop."""
        quiet = True if self.args.quiet else None
        done = self.checkpoint.step if self.checkpoint else 0
        # smoothing 0: an estimate from all steps so far counts the validation losses between them.
        total = self.wrapper.config.steps or self.wrapper.config.max_steps
        bar = tqdm(total=total, initial=done, desc="learning", disable=quiet, smoothing=0)
        with Interruption() as interruption, bar, self.saving_if_cut_short(), closing(self.steps(images)) as steps:
            for state in steps:
                self.states.append(state)
                self.after_step(state, bar)
                if interruption.asked(self.wrapper.model.device):
                    self.save_state()
                    say(f"stopped at step {state.step} of {self.folder}; the same command with --resume goes on")
                    sys.exit(128 + interruption.number)
        if not self.improved and not self.stage:
            raise minti.TrainingError(self.nothing_learned())

    def steps(self, images: list[Image.Image]) -> Iterator[minti.TrainingState]:
        """The steps of the run."""
        return iter(minti.monitored(minti.textual_inversion(self.wrapper, images, checkpoint=self.checkpoint)))

    def attached(self) -> Any:
        """A context in which the model samples what it has learned."""
        return nullcontext()  # the model has the word anyway

    @contextmanager
    def saving_if_cut_short(self) -> Iterator[None]:
        """Where a run is cut short, writes the best vectors so far; where it fails, a former file stays."""
        try:
            yield
        except minti.TrainingError:
            raise
        except BaseException:
            if self.saves_early and not self.stage:  # whether another vector pays is not known before its run has ended
                self.save()
            raise

    def after_step(self, state: minti.TrainingState, bar: tqdm) -> None:
        """Updates the bar; saves a checkpoint and validation images where they are due."""
        bar.update()
        if state.validation_loss is not None:
            bar.set_postfix(validation_loss=f"{state.validation_loss:.4f}", initializer=f"{state.initializer_loss:.4f}")
        every = self.args.checkpoint_every
        if state.finished or (state.step % every == 0 if every else state.validation_loss is not None):
            self.save_state()
        every = self.args.validate_every
        if every and distributed.rank() == 0 and state.step % every == 0:
            with self.attached():
                self.validate(self.folder / f"validation{self.stage}-{state.step:05}.png")

    def save_state(self) -> None:
        """Saves a checkpoint; of several processes, which all have the same, the first writes."""
        if distributed.rank() == 0:
            write_losses(self.losses, self.states)
            minti.save_checkpoint(self.wrapper, self.checkpoints, self.keep)

    @property
    def improved(self) -> bool:
        """Whether any validation loss was lower than before the first step."""
        trainer = self.wrapper.trainer
        return bool(trainer and trainer.monitor) and min(trainer.monitor.losses) < trainer.monitor.losses[0]

    def save(self) -> None:
        """Writes the best vectors so far, if they are better than the initial ones."""
        if distributed.rank() == 0 and self.improved:
            minti.save_embeddings(self.wrapper, self.folder / "learned_embeds.safetensors")

    def summary(self) -> str:
        """What was learned, in a sentence."""
        trainer, config = self.wrapper.trainer, self.wrapper.config
        monitor, norm = trainer.monitor, self.wrapper.embedding.values.norm(dim=1).mean().item()
        return (
            f"learned {config.placeholder_token} in {trainer.completed} steps; validation loss "
            f"{min(monitor.losses):.4f} at step {monitor.best_step} (initializer {monitor.losses[0]:.4f}, empty "
            f"prompt {monitor.empty_loss:.4f}); norm of its vectors {norm:.2f}, the vocabulary's "
            f"{self.wrapper.vocabulary_norm:.2f}"
        )

    def nothing_learned(self) -> str:
        """Why there is no word, and what could help."""
        trainer, word = self.wrapper.trainer, self.wrapper.initializer_token
        (first, *others), initial = trainer.monitor.losses, "random vectors" if word is None else repr(word)
        return (
            f"nothing was learned, and no word is written: with {initial} the validation loss was {first:.4f}, and in "
            f"{trainer.completed} steps it was never lower (best {min(others):.4f}); try more steps, larger batches or "
            "a lower learning rate"
        )


def put_aside(folder: Path, what: str = "checkpoints", why: str = " (--resume would have gone on with it)") -> None:
    """Moves what an earlier run has left out of a new run's way; it is not lost."""
    if folder.is_dir() and any(folder.iterdir()):
        aside = folder.with_name(f"{folder.name}-before")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        say(f"the {what} of the run before {'is' if what == 'model' else 'are'} in {aside} now{why}")


def say(text: str) -> None:
    """Prints, once for all processes."""
    if distributed.rank() == 0:
        print(text)
