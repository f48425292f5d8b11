"""Guidance by the network's own attention and by CLIP: the options, and what `minti.sample` takes as `guidance`."""

from support.adapters import own_clip
from support.command_line import finite
from support.option_types import filled

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import minti
from minti.denoising import Predict
from minti.evaluation.clip_scores import CLIP_SOURCE, load_clip
from minti.guidance.clip import SCALE, clip_guidance
from minti.guidance.gradients import Guidance
from minti.guidance.perturbed_attention import PerturbedAttention
from minti.guidance.self_attention_guidance import SelfAttentionGuidance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Groups of options of their own."""
    group = parser.add_argument_group("guidance by the network's own attention")
    pag_help = "perturbed-attention guidance, away from images without self-attention; usually 3"
    group.add_argument("--pag", type=finite, default=0.0, metavar="SCALE", help=pag_help)
    sag_help = "self-attention guidance, away from images that are blurred where the network looks; usually 0.75"
    group.add_argument("--sag", type=finite, default=0.0, metavar="SCALE", help=sag_help)
    group = parser.add_argument_group("CLIP guidance (universal guidance, arXiv 2302.07121)")
    prompt_help = "the text for CLIP; each step costs a backward pass through the network, and the memory of training"
    group.add_argument("--clip-prompt", type=filled, metavar="TEXT", help=prompt_help)
    scale_help = f"how strongly; default: {SCALE:g}"
    group.add_argument("--clip-guidance-scale", type=finite, metavar="SCALE", help=scale_help)
    group.add_argument("--clip", type=filled, help=f"a folder or hub id; default: the toybox's own, or {CLIP_SOURCE}")


@contextmanager
def attached(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[Guidance]:
    """A context in which the adapters of guidance are attached to the model; yields the `guidance` of `minti.sample`.

    Raises ValueError, OSError: an option of CLIP guidance without --clip-prompt; the CLIP cannot be reached."""
    chosen = ((PerturbedAttention, args.pag), (SelfAttentionGuidance, args.sag))
    adapters = [kind(scale) for kind, scale in chosen if scale]
    ways = [adapter.guidance for adapter in adapters]
    if args.clip_prompt:
        clip = (None if args.clip else own_clip(model, args.model)) or load_clip(args.clip or CLIP_SOURCE, model.device)
        scale = SCALE if args.clip_guidance_scale is None else args.clip_guidance_scale
        ways.append(clip_guidance(model, clip, args.clip_prompt, scale))
        if adapters:  # which change from pass to pass, and a recomputed layer would not be the same
            model.unet.gradient_checkpointing(False)
    elif args.clip or args.clip_guidance_scale is not None:
        raise ValueError("--clip and --clip-guidance-scale say how to go towards --clip-prompt; give that too")

    def guidance(predict: Predict) -> Predict:
        for way in ways:
            predict = way(predict)
        return predict

    with ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.attached(model))
        yield guidance
