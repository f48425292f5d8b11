"""What the judge says of pictures: how many of a scene's attributes it finds drawn right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from networks import Judge
from world import Toy

Rates = dict[str, float]
TOY = tuple(Judge.TOY)  # shape, pattern, main, second


def load_judge(model_folder: str | Path) -> Judge:
    """The judge that ships with the toybox.

    Raises:
        FileNotFoundError: the model has none; only the toybox does.
    """
    path = Path(model_folder) / "evaluation" / "judge.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; only the toybox model can be measured by its judge")
    judge = Judge()
    judge.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    )
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pixels: Tensor) -> list[dict[str, str]]:
    """What the judge sees in each picture: {head: answer}."""
    logits = judge(pixels.to(next(judge.parameters()).device).float().clamp(-1, 1))
    chosen = {name: scores.argmax(dim=1).tolist() for name, scores in logits.items()}
    return [{name: judge.answers[name][chosen[name][i]] for name in chosen} for i in range(len(pixels))]


def rates(pairs: Iterable[tuple[dict[str, str], dict[str, str]]]) -> Rates:
    """The share of right answers per attribute, over (verdict, truth) pairs; slots of one attribute count together."""
    right: dict[str, list[bool]] = defaultdict(list)
    for verdict, truth in pairs:
        for name, answer in truth.items():
            right[name.split("_")[0]].append(verdict[name] == answer)
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def toy_truth(toy: Toy, slot: int = 0) -> dict[str, str]:
    """The right answers about a toy in a slot."""
    return {f"{name}_{slot}": getattr(toy, name) for name in TOY}


def recognised(verdict: dict[str, str], toy: Toy) -> bool:
    """Whether one of the two slots shows the toy: its shape, its pattern and both colours."""
    return any(all(verdict[name] == answer for name, answer in toy_truth(toy, slot).items()) for slot in (0, 1))


def table(rows: Sequence[tuple[str, Rates]], columns: Sequence[str]) -> str:
    """Rates as a Markdown table, in per cent."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows:
        cells = (f"{100 * values[column]:.1f}" if column in values else "" for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
