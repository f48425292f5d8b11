"""What is added to a model while it draws: the options that say so, and how it goes inside."""

from __future__ import annotations

from support.command_line import finite
from support.ip_picture import seen

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import minti
from minti.images import open_image
from minti.machine import processes
from minti.parts.ip_adapter import load_ip_adapter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("what is added to the model")
    adapter_help = "lets a picture be a prompt; of the toybox: weights/toybox/ip_adapter/ip_adapter.safetensors"
    group.add_argument("--ip-adapter", type=Path, metavar="FILE", help=adapter_help)
    group.add_argument("--ip-picture", type=Path, metavar="PICTURE", help="what to draw, beside what PROMPT says")
    group.add_argument("--ip-scale", type=finite, default=1.0, help="how much the picture counts; 0: not at all")
    encoder_help = "the CLIP that looks at the picture, a folder or hub id; the toybox has its own"
    group.add_argument("--ip-encoder", metavar="SOURCE", help=encoder_help)


@contextmanager
def added(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[None]:
    """A context in which the model has all that the command line adds.

    Raises ValueError, OSError: one of the files is missing or does not fit it.
    """
    if (args.ip_adapter is None) != (args.ip_picture is None):
        raise ValueError("--ip-adapter and --ip-picture go together: the adapter lets the picture be a prompt")
    with ExitStack() as stack:
        if args.ip_adapter is not None:
            stack.enter_context(ip_adapter(args, model).inside(model))
        yield


def ip_adapter(args: argparse.Namespace, model: minti.StableDiffusion) -> minti.parts.part.Part:
    """The adapter with its picture."""
    adapter = load_ip_adapter(model, args.ip_adapter, args.ip_scale)
    picture = seen(model, args.model, args.ip_encoder, open_image(args.ip_picture))
    expected = adapter.picture.shape[1]
    if picture.shape[1] != expected:
        raise ValueError(
            f"{args.ip_adapter} wants {expected} numbers of a picture, its CLIP gives {picture.shape[1]}; "
            "give the --ip-encoder that it was trained with"
        )
    adapter.picture = picture
    if processes.rank() == 0:
        print(f"{args.ip_adapter}: an IP-Adapter, sees {args.ip_picture}, scale {args.ip_scale:g}")
    return adapter
