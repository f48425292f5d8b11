"""Accuracy of samples: the fraction of a scene's attributes that the judge, a classifier, recognises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from networks import Judge, load_weights
from world import Toy

Rates = dict[str, float]
TOY = tuple(Judge.TOY)  # shape, pattern, main, second


def load_judge(model_folder: str | Path) -> Judge:
    """The classifier that is bundled with the toybox. Raises FileNotFoundError: the model has none."""
    judge = Judge()
    judge.load_state_dict(load_weights(Path(model_folder) / "evaluation" / "judge.safetensors"))
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pixels: Tensor) -> list[dict[str, str]]:
    """The judge's predicted classes of each image: {head: class}."""
    logits = judge(pixels.to(next(judge.parameters()).device).float().clamp(-1, 1))
    chosen = {name: scores.argmax(dim=1).tolist() for name, scores in logits.items()}
    return [{name: judge.answers[name][chosen[name][i]] for name in chosen} for i in range(len(pixels))]


def rates(pairs: Iterable[tuple[dict[str, str], dict[str, str]]]) -> Rates:
    """Accuracy per attribute, over (verdict, truth) pairs; the slots of an attribute count together."""
    right: dict[str, list[bool]] = defaultdict(list)
    for verdict, truth in pairs:
        for name, answer in truth.items():
            right[name.split("_")[0]].append(verdict[name] == answer)
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def toy_truth(toy: Toy, slot: int = 0) -> dict[str, str]:
    """The true classes of a toy in a slot: {head: class}."""
    return {f"{name}_{slot}": getattr(toy, name) for name in TOY}


def recognised(verdict: dict[str, str], toy: Toy) -> bool:
    """Whether the predicted shape, pattern and both colours are the toy's, in one of the two slots."""
    return any(all(verdict[name] == answer for name, answer in toy_truth(toy, slot).items()) for slot in (0, 1))


def table(rows: Sequence[tuple[str, Rates]], columns: Sequence[str]) -> str:
    """Accuracies as a Markdown table, in per cent."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows:
        cells = (f"{100 * values[column]:.1f}" if column in values else "" for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
