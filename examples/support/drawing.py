"""Sampling many prompts with the same noise in every row."""

from support.adapters import Encode
from support.command_line import generators

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

import minti
from minti.guidance.conditions import Conditions


class Artist:
    """A model and how it samples: image i of every prompt starts from the noise of seed + i.

    Attributes:
        encode: what encodes the prompts; see `adapters.attached`.
        drawn: how many images so far.
    """

    def __init__(self, args: argparse.Namespace, model: minti.StableDiffusion):
        self.args, self.model, self.drawn = args, model, 0
        self.encode: Encode = lambda prompts, with_image=True: prompts
        self.quiet = True if args.quiet else None

    def draw(
        self, prompts: Sequence[str], count: int, extra_prompts: Sequence[tuple[str, float]] = (), **options: Any
    ) -> list[Image.Image]:
        """`count` images of each prompt, prompt by prompt. `extra_prompts`: of each image, with their weights;
        `options`: further ones of `minti.sample`."""
        settings = {
            "num_inference_steps": self.args.steps,
            "sampler": self.args.sampler,
            "guidance_scale": self.args.guidance_scale,
        } | options
        if extra_prompts:
            extra = [(self.encode([prompt]), weight) for prompt, weight in extra_prompts]
            settings["cfg"] = Conditions(self.model, extra)
        jobs = [(prompt, i) for prompt in prompts for i in range(count)]
        images: list[Image.Image] = []
        size = self.args.batch_size
        for start in tqdm(range(0, len(jobs), size), "sampling", disable=self.quiet, leave=False):
            batch = jobs[start : start + size]
            noise = [generators(self.args.seed + i, 1)[0] for _, i in batch]
            contexts = self.encode([prompt for prompt, _ in batch])
            images += minti.sample(self.model, contexts, self.encode([""], False), generator=noise, **settings)
        self.drawn += len(images)
        return images
