"""What only the toybox can be measured by: its own CLIP, the judge, and attention inside outlines that are known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minti
import world
from held_out import painted, random_scenes
from measure import load_judge, sentence, tally, toy_of
from minti.editing.attention_maps import AttentionMaps
from minti.utils import randn
from outlines import masks
from toy_clip import load_toy_clip

TIMESTEPS = (100, 300, 500, 700)
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


@torch.no_grad()
def attention_inside(
    model: minti.StableDiffusion,
    toy: world.Toy,
    template: str,
    words: Sequence[str],
    count: int = 32,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Mean share of each word's cross-attention inside the toy's true outline, and its standard error over the images.

    The images are painted scenes, whose outlines are therefore known; they are noised and given to the UNet.
    `template`: the prompt, of a photo, with {} for each of `words` in turn.
    Returns {word: (share, error)}; under "chance" the outline's share of the image, under "photo, beside WORD" that of
    the template's other words.
    """
    scenes = [replace(scene, style="photo") for scene in random_scenes(count, seed, 21, toys=(toy,))]
    outlines = masks(scenes, [(seed, 22, i) for i in range(count)])
    inside = F.avg_pool2d(outlines, model.vae.config.factor)[:, 0]  # b h w
    latents = model.scale(model.encode(painted(scenes, seed, 22)).mean)
    noise = randn(latents.shape, torch.Generator().manual_seed(seed), latents.device, latents.dtype)
    shares = {"chance": inside.mean(dim=(1, 2))}
    for word in words:
        prompts = [template.replace("{}", word)] * count
        context = model.encode_prompt(prompts)
        maps = AttentionMaps(model, prompts)
        with maps.attached(model):
            for t in timesteps:
                steps = torch.full((count,), t, device=latents.device)
                model.unet(model.scheduler.add_noise(latents, noise, steps), steps, context)
        shares[word] = share_inside(maps.of(word).cpu(), inside)
        for other in dict.fromkeys(template.replace("{}", "").split()):
            shares[f"{other}, beside {word}"] = share_inside(maps.of(other).cpu(), inside)
    return {name: (share.mean().item(), share.std().item() / count**0.5) for name, share in shares.items()}


def share_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """The share of each map inside an outline: (b, h, w) and (b, h, w) in [0, 1] -> (b,). Of a uniform map it is the
    outline's share of the area."""
    return (maps * inside).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
