"""What is added to a model while it draws: the options that say so, and how it goes inside."""

from __future__ import annotations

from support.command_line import finite, whole
from support.ip_picture import seen

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minti
from minti.adapters.controlnet import ControlNet
from minti.adapters.ip_adapter import IPAdapter, load_ip_adapter
from minti.formats.image_files import open_image
from minti.runs import distributed
from minti.speed.deep_cache import DeepCache

# Prompts, and whether the picture belongs to them, to what `minti.sample` takes.
Said = Callable[[Sequence[str], bool], Sequence[str] | Tensor]


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
    adapter_help = "lets a picture be a prompt; of the toybox: weights/toybox/ip_adapter/ip_adapter.safetensors"
    group.add_argument("--ip-adapter", type=Path, metavar="FILE", help=adapter_help)
    group.add_argument("--ip-picture", type=Path, metavar="PICTURE", help="what to draw, beside what PROMPT says")
    group.add_argument("--ip-scale", type=finite, default=1.0, help="how much the picture counts; 0: not at all")
    encoder_help = "the CLIP that looks at the picture, a folder or hub id; the toybox has its own"
    group.add_argument("--ip-encoder", metavar="SOURCE", help=encoder_help)
    deep_help = "compute the UNet whole in every K-th step only, and keep what is deep in it meanwhile; 1: in all"
    group.add_argument("--keep-deep", type=whole(1), default=1, metavar="K", help=deep_help)


def weighted(text: str) -> tuple[Path, float]:
    """The type of an option that takes a file and its weight."""
    if "=" not in text or Path(text).exists():
        return Path(text), 1.0
    path, weight = text.rsplit("=", 1)
    return Path(path), finite(weight)


@contextmanager
def added(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[Said]:
    """A context in which the model has all that the command line adds; gives what prompts are to be said as.

    Raises ValueError, OSError: one of the files is missing, does not fit it, or is given twice.
    """
    if (args.ip_adapter is None) != (args.ip_picture is None):
        raise ValueError("--ip-adapter and --ip-picture go together: the adapter lets the picture be a prompt")
    adapter, picture = None, None

    def said(prompts: Sequence[str], shown: bool = True) -> Sequence[str] | Tensor:
        if adapter is None:
            return prompts
        return adapter.prompted(model.encode_prompt(prompts), picture if shown else None)

    files = [path.resolve() for path, _ in args.lora]
    with ExitStack() as stack:
        for path, weight in args.lora:
            if files.count(path.resolve()) > 1:
                raise ValueError(f"--lora {path} is given {files.count(path.resolve())} times; say once how strongly")
            lora = minti.load_lora(model, path, weight)
            stack.enter_context(lora.attached(model))
            if distributed.rank() == 0:
                print(f"{path}: a LoRA of {len(lora.pairs)} layers, weight {weight:g}")
        if args.hint or args.controlnet:
            control, path = controlnet(args, model)
            stack.enter_context(control.attached(model))
            if distributed.rank() == 0:
                print(f"{path}: a ControlNet, scale {control.scale:g}, and {args.hint}")
        if args.ip_adapter is not None:
            adapter, picture = ip_adapter(args, model)
            stack.enter_context(adapter.attached(model))
        if args.keep_deep > 1:
            stack.enter_context(DeepCache(args.keep_deep).attached(model))
        yield said


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


def ip_adapter(args: argparse.Namespace, model: minti.StableDiffusion) -> tuple[IPAdapter, Tensor]:
    """The adapter, and what its eye sees in the picture, (1, clip_dim)."""
    adapter = load_ip_adapter(model, args.ip_adapter, args.ip_scale)
    picture = seen(model, args.model, args.ip_encoder, open_image(args.ip_picture))
    expected = adapter.image_proj["proj"].in_features
    if picture.shape[1] != expected:
        raise ValueError(
            f"{args.ip_adapter} wants {expected} numbers of a picture, its CLIP gives {picture.shape[1]}; "
            "give the --ip-encoder that it was trained with"
        )
    if distributed.rank() == 0:
        print(f"{args.ip_adapter}: an IP-Adapter, sees {args.ip_picture}, scale {args.ip_scale:g}")
    return adapter, picture
