"""Guidance by CLIP: at every step it is asked how near the picture is to a text, and its gradient moves the latents."""

from __future__ import annotations

from support.command_line import finite

import argparse
import sys
from pathlib import Path

import minti
from minti.evaluation.clip_scores import CLIP_SOURCE, load_clip
from minti.guidance.gradients import Guidance, universal_guidance

TOYBOX = Path(__file__).resolve().parents[1] / "toybox"
SCALE = 100.0  # of diffusers' CLIPGuidedStableDiffusion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("guidance by CLIP (universal guidance, arXiv 2302.07121)")
    prompt_help = "what a CLIP shall see; each step costs a pass back through the network, and the memory of training"
    group.add_argument("--clip-prompt", metavar="TEXT", help=prompt_help)
    scale_help = f"how strongly; default: {SCALE:g}"
    group.add_argument("--clip-guidance-scale", type=finite, metavar="SCALE", help=scale_help)
    group.add_argument("--clip", help=f"a folder or hub id; default: the toybox's own, or {CLIP_SOURCE}")


def towards_text(args: argparse.Namespace, model: minti.StableDiffusion) -> Guidance:
    """The `guidance` of `minti.sample` that the command line names; without --clip-prompt none.
    Raises ValueError, OSError: an option without it; the CLIP cannot be reached."""
    if not args.clip_prompt:
        if args.clip or args.clip_guidance_scale is not None:
            raise ValueError("--clip and --clip-guidance-scale say how to go towards --clip-prompt; give that too")
        return lambda predict: predict
    if not args.clip and (Path(args.model) / "evaluation" / "clip.safetensors").is_file():
        sys.path.append(str(TOYBOX))
        from toy_clip import load_toy_clip

        clip = load_toy_clip(model, args.model)
    else:
        clip = load_clip(args.clip or CLIP_SOURCE, model.device)
    model.freeze(checkpointing=True)
    unlike = clip.unlikeness(args.clip_prompt)
    scale = SCALE if args.clip_guidance_scale is None else args.clip_guidance_scale
    return universal_guidance(model.scheduler, lambda clean: unlike(model.decode(clean)), scale)
