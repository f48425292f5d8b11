"""What only the toybox can be measured by: its own CLIP, the judge, and outlines that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import minti
import world
from attention_inside import attention_inside
from attributes import sentence, tally, toy_of
from measure import load_judge
from toy_clip import load_toy_clip

TEMPLATES = (
    "a cartoon of a {} on a teal background",
    "a black and white photo of a {}",
    "a pixel art picture of a {} on the left on a sand background",
    "a photo of a {} next to a {} on a brown background",
    "a cartoon of a {} next to a {} on a navy background",
)


class ToyMeasures:
    """The toybox's measures behind the names that the evaluation asks for."""

    def __init__(self, model: minti.StableDiffusion, model_folder: str | Path):
        self.templates = TEMPLATES
        self.model, self.clip, self.judge = model, load_toy_clip(model, model_folder), load_judge(model_folder)

    def judge_row(
        self, pictures: Sequence[Image.Image], prompt: str, subjects: Sequence[Any]
    ) -> tuple[dict[str, int], str] | None:
        """Counts of right attributes and a sentence; None where a word is not one of the bundled toys."""
        toys = [toy_of(subject.folder) for subject in subjects]
        if None in toys:
            return None
        asked, *kept = counts = tally(self.judge, pictures, prompt, toys)
        flat = {f"obeyed_{name}": number for name, number in asked.items()}
        for i, count in enumerate(kept):
            flat |= {f"kept_{i}_{name}": number for name, number in count.items()}
        return flat, sentence(counts, [subject.word for subject in subjects], len(pictures))

    def looks(self, name: str) -> str:
        """What a made-up name of the world looks like; nothing for another word."""
        toy = world.NAMED.get(name)
        return f"{toy.main} {toy.shape}, {toy.second} {toy.pattern}" if toy else ""

    def attention_inside(self, subject: Any) -> dict[str, tuple[float, float]] | None:
        """Shares of the word's attention and the initializer's inside the true outline; None for an unknown toy."""
        toy = toy_of(subject.folder)
        return toy and attention_inside(self.model, toy, "a photo of a {}", [subject.word, subject.initializer])
