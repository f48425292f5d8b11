"""Attribute accuracy by the judge, the toybox's classifier: which attributes of a scene, prompt or toy are right."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import world
from draw_concepts import concept_name
from minti.images import to_pixels
from networks import Judge, loaded

Rates = dict[str, float]
Tally = dict[str, int]  # attribute -> in how many images it is right
Verdict = dict[str, str]  # head of the judge -> answer
TOY = tuple(Judge.TOY)  # shape, pattern, main, second
NAMES = {"second": "second colour", "main": "main colour", "count": "number of toys"}


def load_judge(model_folder: str | Path) -> Judge:
    """The classifier that is bundled with the toybox. Raises FileNotFoundError: the model has none."""
    return loaded(Judge(), Path(model_folder) / "evaluation" / "judge.safetensors")


@torch.no_grad()
def verdicts(judge: Judge, images: Tensor | Sequence[Image.Image]) -> list[Verdict]:
    """The judge's classes for each image; a tensor is (n, 3, 64, 64) in [-1, 1]."""
    pixels = images
    if not isinstance(images, Tensor):
        pixels = torch.stack([to_pixels(image, world.RESOLUTION) for image in images])
    logits = judge(pixels.to(next(judge.parameters()).device).float().clamp(-1, 1))
    chosen = {name: scores.argmax(dim=1).tolist() for name, scores in logits.items()}
    return [{name: judge.answers[name][chosen[name][i]] for name in chosen} for i in range(len(pixels))]


def rates(pairs: Iterable[tuple[Verdict, Verdict]]) -> Rates:
    """Accuracy per attribute over (verdict, truth) pairs; the two slots of an attribute count together."""
    right: dict[str, list[bool]] = defaultdict(list)
    for verdict, truth in pairs:
        for name, answer in truth.items():
            right[name.split("_")[0]].append(verdict[name] == answer)
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def toy_truth(toy: world.Toy, slot: int = 0) -> Verdict:
    """The right classes of a toy in a slot."""
    return {f"{name}_{slot}": getattr(toy, name) for name in TOY}


def recognised(verdict: Verdict, toy: world.Toy) -> bool:
    """Whether one of the two slots shows the toy: its shape, its pattern and both colours."""
    return any(all(verdict[name] == answer for name, answer in toy_truth(toy, slot).items()) for slot in (0, 1))


def kept(before: Verdict, after: Verdict, changed: str) -> bool:
    """Whether all but one attribute of an image of one toy are classified as before."""
    return all(after[name] == before[name] for name in before if name != changed and not name.endswith("_1"))


# --- prompts and learned toys -----------------------------------------------------------------------------------------


def toy_of(folder: Path) -> world.Toy | None:
    """The toy of a bundled concept's folder; None for any other."""
    return {concept_name(toy): toy for toy in world.HELD_OUT}.get(folder.resolve().name)


def wanted(prompt: str, toys: int = 1) -> Verdict:
    """The classes that a prompt names besides its toys."""
    answers = {"count": "two"} if toys == 2 else {}
    styles = [style for style, text in world.STYLES.items() if text in prompt]
    named = {"style": max(styles, key=len, default=None)}
    if named["style"] not in world.COLOURLESS:
        named["background"] = next((name for name in world.BACKGROUNDS if f"on a {name} background" in prompt), None)
    if toys == 1:
        named["place"] = next((place for place in world.PLACES if place in prompt), None)
        named["size"] = next((size for size in world.SIZES if f"a {size} " in prompt), None)
    return answers | {name: answer for name, answer in named.items() if answer}


def seen_of(toy: world.Toy, style: str) -> Verdict:
    """The attributes of a toy that are visible in a style: all, or without colours, or without the pattern."""
    hidden = {"main", "second"} if style in world.COLOURLESS else set()
    hidden |= set() if world.pattern_visible(toy, style) else {"pattern"}
    return {name: getattr(toy, name) for name in TOY if name not in hidden}


def tally(judge: Judge, images: Sequence[Image.Image], prompt: str, toys: Sequence[world.Toy]) -> list[Tally]:
    """How often the prompt's attributes are right, then each toy's; "all" counts the images where all of them are.

    Of a pair each toy may stand on either side: the side is taken on which more of both is right.
    """
    asked = wanted(prompt, len(toys))
    looks = [seen_of(toy, asked.get("style", "photo")) for toy in toys]
    counts: list[Tally] = [defaultdict(int) for _ in range(1 + len(toys))]
    for verdict in verdicts(judge, images):
        matches = [
            [{name: verdict[f"{name}_{slot}"] == value for name, value in look.items()} for look, slot in pairs]
            for pairs in [list(zip(looks, side)) for side in ([(0, 1), (1, 0)] if len(toys) == 2 else [(0,)])]
        ]
        best = max(matches, key=lambda match: sum(sum(right.values()) for right in match))
        for count, right in zip(counts, [{name: verdict[name] == asked[name] for name in asked}, *best]):
            for name, value in (right | {"all": all(right.values())}).items():
                count[name] += value
    return [dict(count) for count in counts]


def tally_rates(judge: Judge, images: Sequence[Image.Image], prompt: str, toys: Sequence[world.Toy]) -> list[Rates]:
    """The counts of `tally` as shares of the images."""
    return [{name: n / len(images) for name, n in count.items()} for count in tally(judge, images, prompt, toys)]


def sentence(counts: Sequence[Tally], words: Sequence[str], total: int) -> str:
    """The counts of `tally` for `total` images as a sentence."""
    asked, *others = counts
    obeyed = [name for name in asked if name != "all" and asked[name] == total]
    parts = [f"obeys the {_and(obeyed)}"] if obeyed else []
    if missed := _missed(asked, total):
        parts.append(f"misses the {missed}")
    for word, count in zip(words, others):
        lost = _missed(count, total)
        parts.append(f"{word} loses its {lost}" if lost else f"{word} keeps all that can be seen of it")
    return "; ".join(parts)


def _missed(count: Tally, total: int) -> str:
    wrong = {name: total - right for name, right in count.items() if name != "all" and right < total}
    return _and([f"{NAMES.get(name, name)} in {number} of {total}" for name, number in wrong.items()])


def _and(names: Sequence[str]) -> str:
    named = [NAMES.get(name, name) for name in names]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1] if named else ""
