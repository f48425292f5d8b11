"""Guidance by the network's own attention: the options that say so, and what bends the prediction."""

from __future__ import annotations

from support.command_line import finite

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import minti
from minti.denoising import Predict
from minti.guidance.perturbed_attention import PerturbedAttention
from minti.guidance.self_attention_guidance import SelfAttentionGuidance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("guidance by the network's own attention")
    pag_help = "away from a picture whose places do not see each other (perturbed-attention guidance); usually 3"
    group.add_argument("--pag", type=finite, default=0.0, metavar="SCALE", help=pag_help)
    sag_help = "away from a picture blurred where the network looks (self-attention guidance); usually 0.75"
    group.add_argument("--sag", type=finite, default=0.0, metavar="SCALE", help=sag_help)


@contextmanager
def bent(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[Callable[[Predict], Predict]]:
    """A context in which the model has what the command line names; gives the `guidance` of `minti.sample`."""
    parts = [
        kind(scale) for kind, scale in ((PerturbedAttention, args.pag), (SelfAttentionGuidance, args.sag)) if scale
    ]

    def guidance(predict: Predict) -> Predict:
        for part in parts:
            predict = part.guidance(predict)
        return predict

    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.attached(model))
        yield guidance
