"""Checkpoints: an interrupted training run goes on as if it had never been interrupted.

A checkpoint is written by `torch.save`, atomically, and read by `torch.load(weights_only=True)`, which runs no code of
the file; its zip container has a checksum for every tensor. A damaged one is passed over for an older one.
"""

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.runs.files import replacing
from minti.runs.messages import one_line, short_repr, shortened
from minti.textual_inversion import TextualInversionConfig
from minti.training import Trainer
from minti.wrapper import TrainingWrapper

FORMAT = 3
NAME = re.compile(r"step-(\d+)\.pt")
ANOTHER_VERSION = "was written by another version of minti; go on with that one, or begin anew"


@dataclass(frozen=True)
class Checkpoint:
    """A training checkpoint: the state after `step`, and the metadata that must match on resume."""

    step: int
    state: dict[str, Any]
    identity: dict[str, Any]

    def restore_monitor(self, monitor: Any) -> None:
        """The validation losses and the best values so far."""
        with self.reading():
            saved = self.state["monitor"]
            monitor.losses, monitor.empty_loss = list(saved["losses"]), float(saved["empty_loss"])
            monitor.best_step = int(saved["best_step"])
            monitor.best = like(saved["best"], monitor.best)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context in which something that is missing, or of another kind, becomes a ValueError that says so."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(f"the checkpoint of step {self.step} is no whole state of a run: {what}") from None


def like(saved: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Saved values on the device of one's own. Raises RuntimeError: of other names or shapes, or not finite."""
    for name, value in own.items():
        if saved[name].shape != value.shape or not saved[name].isfinite().all():
            raise RuntimeError(f"{name} is not {tuple(value.shape)} finite numbers")
    return {name: saved[name].to(value) for name, value in own.items()}


def fingerprint(model: StableDiffusion) -> str:
    """Tells models apart, by up to 64 numbers of every tensor; learned words do not count."""
    digest = hashlib.sha256(str(model.scheduler.config).encode())
    for part in (model.unet, model.vae, model.text_encoder):
        for name, tensor in part.state_dict().items():
            if "token_embedding" in name:
                tensor = tensor[: model.tokenizer.vocab_size]
            some = tensor.flatten()[:: max(1, tensor.numel() // 64)]
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def pixels_hash(pixels: Tensor) -> str:
    """Of the images; their latents' last bits differ between machines."""
    return hashlib.sha256(pixels.float().cpu().numpy().tobytes()).hexdigest()[:16]


def identity(trainer: Trainer) -> dict[str, Any]:
    """What must be the same for a run to go on; it may be made longer."""
    training = trainer.training
    core = {field.name for field in fields(TextualInversionConfig)}
    settings = [(field, getattr(training.config, field.name)) for field in fields(training.config)]
    facts = {one.name: value for one, value in settings if one.name in core or value != one.default}
    facts = {key: value for key, value in facts.items() if key not in ("steps", "max_steps")}
    facts |= {key: getattr(training, key) for key in ("learning_rate", "batch_size", "templates")}
    facts |= {"dtype": str(training.model.dtype), "processes": trainer.group.size}
    if "model" not in training.metadata:  # DreamBooth's was taken before the model learned
        facts["model"] = fingerprint(training.model)
    facts |= {"images": pixels_hash(trainer.data.pixels), "optimizer": type(trainer.optimizer).__name__}
    facts |= training.metadata
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def save_checkpoint(training: TrainingWrapper, folder: str | os.PathLike[str], keep: int = 3) -> Path:
    """Writes the state after a run's last step, within its loop or after it, atomically; keeps the newest few.

    Raises ValueError: no run has begun, or an error or Ctrl-C has ended it within a step. OSError: no space.
    """
    trainer: Trainer | None = training.trainer
    if trainer is None:
        raise ValueError("there is nothing to save yet: take a step of minti.textual_inversion first")
    if trainer.completed != trainer.number:
        raise ValueError(f"the run ended in the middle of step {trainer.number}; go on with the checkpoint before")
    monitor, adapter = trainer.monitor, trainer.adapter
    last = monitor.last if monitor and monitor.restored else None
    state: dict[str, Any] = {
        "adapter": dict(last or adapter.state_dict()),
        "optimizer": own_rows(trainer.optimizer.state_dict()["state"], adapter.own),
        "generator": trainer.generator.get_state(),
        "scaler": trainer.scaler.state_dict(),
        "skipped": trainer.skipped,
        "steps": trainer.steps,
        "monitor": monitor
        and {
            "losses": monitor.losses,
            "empty_loss": monitor.empty_loss,
            "best_step": monitor.best_step,
            "best": monitor.best,
        },
    }
    content = {"format": FORMAT, "step": trainer.number, "identity": identity(trainer), "state": on_cpu(state)}
    path = Path(folder) / f"step-{trainer.number:06}.pt"
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of torch's writer, where the disk is full
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    for old in newest_first(path.parent)[keep:]:
        old.unlink(missing_ok=True)
    return path


def own_rows(state: Any, rows: Any) -> Any:
    """An optimizer's state, restricted to the adapter's own rows: E4's recipe trains a matrix of 49,408."""
    if isinstance(state, dict):
        return {key: own_rows(value, rows) for key, value in state.items()}
    return state[rows] if isinstance(state, Tensor) and state.ndim else state


def on_cpu(state: Any) -> Any:
    """A nest of dictionaries with copies of its tensors on the CPU."""
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return state.detach().cpu().clone() if isinstance(state, Tensor) else state


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest whole checkpoint of a folder, for `textual_inversion(..., checkpoint=...)`; None where there is none.
    Warns of newer ones that are damaged. Raises ValueError: all are, or it is of another version of minti."""
    paths = newest_first(Path(folder))
    for path in paths:
        try:
            content = read(path)
        except Exception as error:  # torch's reader fails in all manners
            warnings.warn(f"{path} is damaged ({one_line(error)}); looking for an older one", stacklevel=2)
            continue
        if content.get("format") != FORMAT:
            raise ValueError(f"{path} {ANOTHER_VERSION}")
        return Checkpoint(content["step"], content["state"], content["identity"])
    if paths:
        raise ValueError(f"{folder}: every checkpoint in it is damaged; remove them, and begin anew")
    if any(Path(folder).glob("step-*.safetensors")):  # of minti 0.1
        raise ValueError(f"{folder} {ANOTHER_VERSION}")
    return None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content. Raises Exception of many kinds: it is damaged."""
    with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
        if broken := file.testzip():
            raise ValueError(f"the checksum of {broken} is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content["step"], int) or not all(isinstance(content[k], dict) for k in ("identity", "state")):
        raise ValueError("it is no checkpoint")
    return content


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    numbers = {path: int(match[1]) for path in paths if (match := NAME.fullmatch(path.name))}
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def resumed(trainer: Trainer, checkpoint: Checkpoint) -> Trainer:
    """Puts a run that has not begun where the checkpoint was taken. Raises ValueError: it is of another run, beyond the
    last step, or no whole state; everything is checked before anything is changed. Warns of another schedule."""
    was, now, state, adapter = checkpoint.identity, identity(trainer), checkpoint.state, trainer.adapter
    differ = [key for key in sorted(was.keys() | now) if was.get(key) != now.get(key)]
    if differ:
        both = [[key, *(shortened(str(facts.get(key, "not set"))) for facts in (was, now))] for key in differ[:20]]
        changes = "; ".join(f"{key} was {before} and is {after}" for key, before, after in both)
        raise ValueError(f"the checkpoint is of another run: {changes}. Go on with the same, or begin anew")
    if checkpoint.step > trainer.steps:
        raise ValueError(f"the checkpoint is of step {checkpoint.step}, beyond the {trainer.steps} wanted")
    with checkpoint.reading():
        values, skipped = like(state["adapter"], dict(adapter.state_dict())), int(state["skipped"])
        optimizer = optimizer_state(trainer, state["optimizer"], checkpoint.step - skipped)
        compare_schedules(trainer.training, state.get("steps"), trainer.steps, checkpoint.step - skipped)
        trainer.generator.set_state(state["generator"])
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": optimizer})
        if trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(state["scaler"])
        adapter.load_state_dict(values)
        adapter.after_step(trainer.model)
        trainer.number = trainer.completed = checkpoint.step
        trainer.skipped, trainer.checkpoint = skipped, checkpoint if state["monitor"] else None
    return trainer


def compare_schedules(training: TrainingWrapper, was: int | None, now: int, taken: int) -> None:
    """Warns that the rate after so many steps is another because the last step `was` another, as of a cosine."""
    config = training.config
    if was not in (None, now) and config.rate:
        old, new = (training.learning_rate * replace(config, steps=last).rate(taken) for last in (was, now))
        if old != new:
            why = f"its schedule ends at the last step, which was {was} and is {now}"
            warnings.warn(f"the learning rate goes on with {new:.3g} in place of {old:.3g}: {why}", stacklevel=2)


def optimizer_state(trainer: Trainer, saved: dict[int, dict[str, Any]], taken: int) -> dict[int, dict[str, Any]]:
    """The saved state, with zeros for rows that are not the adapter's. Raises RuntimeError: AdamW's does not fit."""
    found, rows = {number: dict(values) for number, values in saved.items()}, trainer.adapter.own
    for number, parameter in enumerate(trainer.adapter.trainable()):
        values = found.get(number, {})
        if isinstance(trainer.optimizer, torch.optim.AdamW) and taken:
            own = parameter[rows]
            like(values, {"exp_avg": own, "exp_avg_sq": own})
            if float(values["step"]) != taken:
                raise RuntimeError(f"the optimizer has taken {short_repr(values['step'])} of {taken} steps")
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and rows is not ...:
                values[key] = torch.zeros_like(parameter, dtype=value.dtype)
                values[key][rows] = value.to(parameter.device)
    return found
