"""What is added to a model while it draws: the options that say so, and how it goes inside."""

from __future__ import annotations

from support.command_line import finite

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

import minti
from minti.images import open_image
from minti.machine import processes
from minti.parts.controlnet import ControlNet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("what is added to the model")
    lora_help = "a LoRA, and how strongly it acts, 1 if you say nothing; may be repeated"
    group.add_argument("--lora", type=weighted, action="append", default=[], metavar="FILE[=WEIGHT]", help=lora_help)
    control_help = "a ControlNet: diffusers' folder, or the original file; default: the model's own, as the toybox has"
    group.add_argument("--controlnet", type=Path, metavar="FOLDER", help=control_help)
    hint_help = "what it draws by, a picture of the drawing's size; for the toybox's a white outline on black"
    group.add_argument("--hint", type=Path, metavar="PICTURE", help=hint_help)
    group.add_argument("--control-scale", type=finite, default=1.0, help="how strongly the hint acts; 0 not at all")


def weighted(text: str) -> tuple[Path, float]:
    """The type of an option that takes a file and its weight."""
    if "=" not in text or Path(text).exists():
        return Path(text), 1.0
    path, weight = text.rsplit("=", 1)
    return Path(path), finite(weight)


@contextmanager
def added(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[None]:
    """A context in which the model has all that the command line adds.

    Raises ValueError: one of the files does not fit it, or is given twice.
    """
    files = [path.resolve() for path, _ in args.lora]
    with ExitStack() as stack:
        for path, weight in args.lora:
            if files.count(path.resolve()) > 1:
                raise ValueError(f"--lora {path} is given {files.count(path.resolve())} times; say once how strongly")
            lora = minti.load_lora(model, path, weight)
            stack.enter_context(lora.inside(model))
            if processes.rank() == 0:
                print(f"{path}: a LoRA of {len(lora.pairs)} layers, weight {weight:g}")
        if args.hint or args.controlnet:
            control, path = controlnet(args, model)
            stack.enter_context(control.inside(model))
            if processes.rank() == 0:
                print(f"{path}: a ControlNet, scale {control.scale:g}, and {args.hint}")
        yield


def controlnet(args: argparse.Namespace, model: minti.StableDiffusion) -> tuple[ControlNet, Path]:
    """The ControlNet with its hint, and where it is from.

    Raises ValueError: a ControlNet without a hint, a hint without a ControlNet or of another size than the drawing.
    """
    path, own = args.controlnet, Path(args.model) / "controlnet"
    if not args.hint:
        raise ValueError(f"--controlnet {path} draws by a hint; give --hint PICTURE, too")
    if path is None and not own.is_dir():
        raise ValueError(f"--hint {args.hint} needs a ControlNet, and {args.model} has none; give --controlnet FOLDER")
    picture = open_image(args.hint)
    size = tuple(getattr(args, side, None) or model.resolution for side in ("height", "width"))  # not all scripts ask
    if picture.size != size[::-1]:
        was = f"{picture.height} x {picture.width}"
        raise ValueError(f"--hint {args.hint} is {was} pixels, and the drawing {size[0]} x {size[1]}; make them equal")
    control = ControlNet.from_pretrained(path or own, model)
    control.hint = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # h w c -> 1 c h w
    control.scale = args.control_scale
    return control, path or own
