"""The course of a training run: a table and a plot."""

import csv
import math
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import minti
from minti.runs.checkpoints import Checkpoint
from minti.runs.files import replacing
from minti.runs.messages import one_line

COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "gradient_norm", "row_norm")


def write_losses(path: Path, states: list[minti.TrainingState]) -> None:
    """One line for each step."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for state in states:
            writer.writerow("" if (value := getattr(state, name)) is None else value for name in COLUMNS)


def read_losses(path: Path, checkpoint: Checkpoint) -> list[minti.TrainingState]:
    """The steps up to a checkpoint, of an interrupted run's table; none, with a warning, where it is damaged."""
    states = []
    try:
        monitor = checkpoint.state["monitor"]
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                values = {name: float(row[name]) if row[name] else None for name in COLUMNS[1:]}
                lines = {"initializer_loss": monitor["losses"][0], "empty_loss": monitor["empty_loss"]}
                states.append(minti.TrainingState(step=int(row["step"]), finished=False, **values, **lines))
        if [state.step for state in states[: checkpoint.step]] != list(range(1, checkpoint.step + 1)):
            raise ValueError("steps are missing")
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        begin = f"the curves begin at step {checkpoint.step + 1}"
        warnings.warn(f"{path} is damaged ({one_line(error)}); {begin}", stacklevel=2)
        return []
    return states[: checkpoint.step]


def plot(
    path: Path,
    states: list[minti.TrainingState],
    vocabulary_norm: float,
    others: dict[str, list[minti.TrainingState]] | None = None,
) -> None:
    """The training loss, the validation loss, and the norm of the embedding vectors, where there are any.

    Args:
        states: of all steps of the run whose word is kept.
        vocabulary_norm: mean norm of the model's own vectors.
        others: the steps of other runs, by label.
    """
    panels = 2 if math.isnan(states[-1].row_norm) else 3
    figure, (left, middle, *further) = plt.subplots(1, panels, figsize=(13 * panels / 3, 3.6), layout="constrained")
    first = states[0]
    for label, run in ((others or {}) | {"what is learned": states}).items():
        steps = [state.step for state in run]
        left.plot(steps, [state.loss for state in run], linewidth=0.6)
        evaluated = [state for state in run if state.validation_loss is not None]
        losses = [run[0].initializer_loss, *(state.validation_loss for state in evaluated)]
        middle.plot([0, *(state.step for state in evaluated)], losses, marker=".", label=label)
        for right in further:
            right.plot(steps, [state.row_norm for state in run], label=label)
    left.set(title="training loss (jumps with the timestep)", xlabel="step")
    middle.axhline(first.empty_loss, color="grey", linestyle=":", label="the empty prompt")
    middle.axhline(first.initializer_loss, color="grey", linestyle="--", label="the initializer")
    middle.set(title="validation loss", xlabel="step")
    middle.legend()
    for right in further:
        right.axhline(vocabulary_norm, color="grey", linestyle="--", label="the vocabulary's mean")
        right.set(title="norm of the embedding vectors", xlabel="step", ylim=(0, None))
        right.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
