"""A training run as the scripts do it: a progress bar, checkpoints, interruption and resuming, its files."""

from support.command_line import make_writable
from support.curves import read_losses, write_losses
from support.interruption import Interruption

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import minti
from minti.personalization.vector_table import VectorTable, save_table
from minti.runs import distributed
from minti.runs.files import remove_leftovers

ASIDE = re.compile(r"-before(?:-(\d+))?(?:\.\w+)?$")  # the end of a name that `put_aside` has given


class Learning:
    """A run of textual inversion that saves checkpoints, and the learned word.

    Nothing of an earlier run is touched before there is something to write in its place; then it is put aside.

    Args:
        args: with `resume`, `checkpoint_every`, `validate_every` and `quiet`; `begun` says that the folder is this
            run's own, and is set.
        wrapper: the model and its config.
        folder: for the results.
        validate: samples the word into a file.
        stage: the end of the names of a further run's table and checkpoints, where several are made.

    Attributes:
        states: of all steps, also those before an interruption.
    """

    keep = 3  # checkpoints
    saves_early = True  # where a run is cut short
    results: tuple[str, ...] = ("learned_embeds.safetensors",)

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
        if getattr(wrapper.config, "has_table", False):
            self.results += ("vector_table.safetensors",)
        start = str(wrapper.initializer_token)
        if Path(start).suffix and Path(start).resolve() in [(folder / name).resolve() for name in self.results]:
            raise ValueError(f"the learned word would replace {start}, from which it starts; name another --output")
        if distributed.rank() == 0:
            make_writable(self.checkpoints)  # if that fails, then now
            for each in (folder, self.checkpoints):
                remove_leftovers(each)
        self.checkpoint = minti.load_checkpoint(self.checkpoints) if args.resume else None
        self.states: list[minti.TrainingState] = []
        if self.checkpoint is not None:
            self.states, args.begun = read_losses(self.losses, self.checkpoint), True
        elif args.resume:
            say(f"there is nothing to resume in {self.checkpoints}; beginning anew{self.aside()}")

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
        if not self.improved and not self.stage and getattr(self.args, "starts", 1) == 1:
            raise minti.TrainingError(self.nothing_learned())

    def steps(self, images: list[Image.Image]) -> Iterator[minti.TrainingState]:
        """The steps of the run."""
        return iter(minti.monitored(minti.textual_inversion(self.wrapper, images, checkpoint=self.checkpoint)))

    def attached(self) -> Any:
        """A context in which the model samples what it has learned."""
        word = self.wrapper.embedding  # the model has it anyway, but for a table
        return word.attached(self.wrapper.model) if isinstance(word, VectorTable) else nullcontext()

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
            self.begin()
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
            self.write()

    def write(self) -> None:
        """Writes the word's vectors, and its table if it has one."""
        self.begin_results()
        minti.save_embeddings(self.wrapper, self.folder / self.results[0])
        if isinstance(self.wrapper.embedding, VectorTable):
            save_table(self.folder / self.results[1], self.wrapper.subject, self.wrapper.embedding)

    def begin(self) -> None:
        """Before the first file of a run that begins anew: puts aside the checkpoints and tables of an earlier one."""
        if not getattr(self.args, "begun", False):
            found = sorted([*self.folder.glob("checkpoints*"), *self.folder.glob("losses*.csv")])
            put_aside(path for path in found if not ASIDE.search(path.name))
        self.args.begun = True

    def begin_results(self) -> None:
        """Before the results are written: puts aside those of an earlier run. A file among this run's checkpoints, of
        whatever stage, says that they are its own from now on."""
        self.begin()
        own = self.folder / "checkpoints" / "has-results"
        if not own.exists():
            put_aside(self.folder / name for name in self.results)
            own.parent.mkdir(exist_ok=True)
            own.touch()

    def aside(self) -> str:
        """What was put aside and could be gone on with, in words."""
        found = sorted(self.folder.glob(f"{self.checkpoints.name}-before*"))
        if not found:
            return ""
        listed = ", ".join(map(str, found))
        return f" (to go on with {listed}, rename it to {self.checkpoints.name}, and its {self.losses.name} likewise)"

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
            f"a lower learning rate (it is {self.wrapper.learning_rate:g})"
        )


def put_aside(paths: Iterable[Path]) -> None:
    """Moves files and folders of an earlier run out of a new run's way, under names with one number, and says so."""
    there = [path for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if not there:
        return
    numbers = [int(found[1] or 1) for each in there[0].parent.iterdir() if (found := ASIDE.search(each.name))]
    number = max(numbers, default=1)
    while any(renamed(path, number).exists() for path in there):
        number += 1
    for path in there:
        aside = path.rename(renamed(path, number))
        if path.name.startswith("checkpoints"):
            say(f"the {path.name} of the run before are in {aside} now (--resume would have gone on with it)")
        else:
            say(f"{path.name} of the run before is {aside} now")


def renamed(path: Path, number: int) -> Path:
    """The name under which a path is put aside: losses-before.csv, losses-before-2.csv, ..."""
    return path.with_name(f"{path.stem}-before{f'-{number}' if number > 1 else ''}{path.suffix}")


def say(text: str) -> None:
    """Prints, once for all processes; also where the terminal is closed, which ends no run."""
    if distributed.rank() == 0:
        with suppress(OSError):
            print(text, flush=True)
