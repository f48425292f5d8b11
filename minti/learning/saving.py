"""What a run leaves in files: the word, and all that is needed to go on as if it had never been interrupted."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minti.learning.loop import Loop
from minti.learning.run_state import RunState, write_run_state
from minti.learning.settings import Training, TrainingWrapper
from minti.machine.messages import shown
from minti.machine.processes import world_size
from minti.words.files import write_embeddings

ADAM = ("exp_avg", "exp_avg_sq")


def save_embeddings(wrapper: TrainingWrapper, path: str | os.PathLike[str]) -> None:
    """Writes the learned rows, {placeholder: (num_vectors, d) float32}, to a safetensors file that diffusers'
    `load_textual_inversion` reads. Raises OSError, ValueError: as `write_embeddings`."""
    write_embeddings(path, {wrapper.config.placeholder_token: wrapper.rows.values})


def save_checkpoint(wrapper: Training, folder: str | os.PathLike[str], keep: int = 3) -> Path:
    """Writes the state after a run's last step, within its loop or after it; keeps the newest few.
    Raises ValueError, OSError: as `run_state` and `write_run_state`."""
    return write_run_state(folder, run_state(wrapper), keep)


def identity(wrapper: Training) -> dict[str, Any]:
    """What must be the same for a run to go on. It may be made longer."""
    config, model = wrapper.config, wrapper.model
    facts = {key: value for key, value in asdict(config).items() if key not in ("steps", "max_steps")}
    facts |= {key: getattr(wrapper, key) for key in ("learning_rate", "batch_size", "templates")}
    facts |= {"dtype": str(model.dtype), "processes": world_size()}
    if "model" not in wrapper.facts:
        facts["model"] = model.fingerprint
    run = {"pictures": wrapper.run.fixed.concept.fingerprint, "optimizer": type(wrapper.run.loop.optimizer).__name__}
    facts |= run | wrapper.facts
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}  # as JSON has it


def run_state(wrapper: Training) -> RunState:
    """All that changes: part, optimizer, generator, scaler, how many steps, what the watcher has seen; not copied.
    Raises ValueError: no run has begun, or an error or Ctrl-C has ended it within a step."""
    run = wrapper.run
    if run is None:
        raise ValueError("there is nothing to save yet: take a step of minti.textual_inversion first")
    loop, part = run.loop, run.loop.part
    if run.number != loop.number:
        raise ValueError(f"the run ended in the middle of step {loop.number}; go on with the checkpoint before")
    tensors: dict[str, Tensor] = {"generator": loop.generator.get_state()}
    for kind, values in (("part", run.last or part.state_dict()), ("best", run.best)):
        tensors |= {f"{kind}.{name}": value for name, value in values.items()}
    for number, values in loop.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            inner = value if isinstance(value, dict) else {"": value}  # bitsandbytes wraps what it keeps in 8 bits
            for key, tensor in ((key, torch.as_tensor(tensor)) for key, tensor in inner.items()):
                tensors[f"optimizer.{number}.{name}.{key}".rstrip(".")] = tensor[part.place] if tensor.ndim else tensor
    facts = {
        "identity": identity(wrapper),
        "loop": {"taken": loop.taken, "scaler": loop.scaler.state_dict()},
        "watcher": {"losses": run.losses, "empty_loss": run.empty_loss, "best_step": run.best_step},
    }
    return RunState(loop.number, tensors, facts)


def restore(wrapper: Training, state: RunState) -> None:
    """Goes on where the state was taken. Raises ValueError: it is of another run, or no whole state."""
    run, loop, part = wrapper.run, wrapper.run.loop, wrapper.run.loop.part
    with state.reading():
        state.check_facts(run_state(wrapper).facts)
        if state.step > loop.steps:
            raise ValueError(f"the checkpoint is of step {state.step}, beyond the {loop.steps} wanted")
        own, taken, watcher = part.state_dict(), state.facts["loop"]["taken"], state.facts["watcher"]
        for kind, values in (("part", own), ("best", run.best)):
            state.check({f"{kind}.{name}": value.shape for name, value in values.items()})
        optimizer = optimizer_state(state, loop, taken)
        loop.generator.set_state(state.tensors["generator"])
        loop.optimizer.load_state_dict(loop.optimizer.state_dict() | {"state": optimizer})
        if loop.scaler.is_enabled():
            loop.scaler.load_state_dict(state.facts["loop"]["scaler"])
        loop.number, loop.taken, run.number = state.step, taken, state.step
        run.losses, run.empty_loss, run.best_step = watcher["losses"], watcher["empty_loss"], watcher["best_step"]
        run.best = {name: state.tensors[f"best.{name}"].to(value) for name, value in run.best.items()}
        part.load_state_dict({name: state.tensors[f"part.{name}"] for name in own})
        part.settle(loop.model)


def optimizer_state(state: RunState, loop: Loop, taken: int) -> dict[int, dict[str, Tensor]]:
    """What the optimizer keeps of each parameter after so many steps; what is not the part's does not matter.
    Raises KeyError, RuntimeError: AdamW's is not there, or does not fit."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        if name.startswith("optimizer."):
            _, number, key, *inner = name.split(".")
            values = found.setdefault(int(number), {})
            if inner:
                values.setdefault(key, {})[inner[0]] = tensor
            else:
                values[key] = tensor
    for number, parameter in enumerate(loop.part.trained()):
        values = found.get(number, {})
        if isinstance(loop.optimizer, torch.optim.AdamW) and (taken > 0 or values):
            state.check({f"optimizer.{number}.{name}": parameter[loop.part.place].shape for name in ADAM})
            count = state.tensors[f"optimizer.{number}.step"]
            if not torch.equal(count, torch.tensor(float(taken))):
                raise RuntimeError(f"the optimizer has taken {shown(count)} of {taken} steps")
        for key, value in values.items():
            if isinstance(value, dict):
                continue
            if not value.ndim and not value.is_floating_point():
                values[key] = value.item()  # a count, as optimizers other than torch's keep it
            elif value.ndim and loop.part.place is not ...:
                values[key] = torch.zeros_like(parameter)
                values[key][loop.part.place] = value
    return found
