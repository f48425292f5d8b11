"""Drawing many prompts with the same noise in every row."""

from __future__ import annotations

from support.added import Said
from support.command_line import generators

import argparse
from collections.abc import Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

import minti


class Artist:
    """A model and how it draws: picture i of every prompt begins with the noise of seed + i.

    Attributes:
        said: what prompts are to be said as; see `added`.
        drawn: how many pictures so far.
    """

    def __init__(self, args: argparse.Namespace, model: minti.StableDiffusion):
        self.args, self.model, self.drawn = args, model, 0
        self.said: Said = lambda prompts, shown=True: prompts
        self.quiet = True if args.quiet else None

    def draw(self, prompts: Sequence[str], count: int, **options: Any) -> list[Image.Image]:
        """`count` pictures of each prompt, prompt by prompt; `options` are further ones of `minti.sample`."""
        settings = {
            "num_inference_steps": self.args.steps,
            "sampler": self.args.sampler,
            "guidance_scale": self.args.guidance_scale,
        } | options
        if "also" in settings:
            settings["also"] = [(self.said([prompt]), *rest) for prompt, *rest in settings["also"]]
        jobs = [(prompt, i) for prompt in prompts for i in range(count)]
        pictures: list[Image.Image] = []
        size = self.args.batch_size
        for start in tqdm(range(0, len(jobs), size), "drawing", disable=self.quiet, leave=False):
            batch = jobs[start : start + size]
            noise = [generators(self.args.seed + i, 1)[0] for _, i in batch]
            said = self.said([prompt for prompt, _ in batch])
            pictures += minti.sample(self.model, said, self.said([""], False), generator=noise, **settings)
        self.drawn += len(pictures)
        return pictures
