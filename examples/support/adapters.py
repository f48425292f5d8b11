"""Adapters of the sampling scripts: LoRA, ControlNet, IP-Adapter, DeepCache, tiny decoder and faster products, their
options and how they attach."""

from support.command_line import finite, whole

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minti
from minti.adapters.controlnet import ControlNet
from minti.adapters.image_encoder import load_image_encoder
from minti.adapters.ip_adapter import IPAdapter, load_ip_adapter
from minti.adapters.tiny_decoder import TinyVAE
from minti.editing.images import on_black
from minti.evaluation.clip_scores import Clip
from minti.formats.image_files import open_image
from minti.personalization.vector_table import load_table
from minti.runs import distributed
from minti.speed.deep_cache import DeepCache
from minti.speed.packed import Packed
from minti.speed.winograd import Winograd
from minti.text import token_ids

TOYBOX = Path(__file__).resolve().parents[1] / "toybox"
# Prompts or contexts, and whether the image prompt belongs to them, to what `minti.sample` takes.
Encode = Callable[..., Sequence[str] | Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("adapters")
    lora_help = "a LoRA and its weight, by default 1; may be repeated"
    group.add_argument("--lora", type=weighted, action="append", default=[], metavar="FILE[=WEIGHT]", help=lora_help)
    control_help = "a ControlNet: diffusers' folder, or the original file; default: the model's own, as the toybox has"
    group.add_argument("--controlnet", type=Path, metavar="FOLDER", help=control_help)
    hint_help = "the ControlNet's image, of the sampled size; for the toybox's a white outline on black"
    group.add_argument("--hint", type=Path, metavar="IMAGE", help=hint_help)
    group.add_argument("--control-scale", type=finite, default=1.0, help="of the ControlNet; 0: off")
    adapter_help = "an IP-Adapter, for --ip-image; the toybox's: weights/toybox/ip_adapter/ip_adapter.safetensors"
    group.add_argument("--ip-adapter", type=Path, metavar="FILE", help=adapter_help)
    group.add_argument("--ip-image", type=Path, metavar="IMAGE", help="the image prompt, beside PROMPT")
    group.add_argument("--ip-scale", type=finite, default=1.0, help="of the image prompt; 0: off")
    encoder_help = "the CLIP image encoder of the IP-Adapter, a folder or hub id; the toybox has its own"
    group.add_argument("--ip-encoder", metavar="SOURCE", help=encoder_help)
    table_help = "a word's vectors by layer and timestep, from train.py --by-layer or --timestep-ranges"
    group.add_argument("--vector-table", type=Path, metavar="FILE", help=table_help)
    deep_help = "DeepCache: compute the whole UNet in every K-th step only, reuse its deep features between; 1: off"
    group.add_argument("--deep-cache", type=whole(1), default=1, metavar="K", help=deep_help)
    tiny_help = "decode by a tiny decoder: diffusers' folder of an AutoencoderTiny, or a taesd_decoder file"
    group.add_argument("--tiny-decoder", type=Path, metavar="FOLDER", help=tiny_help)
    add_fast(group)


def add_fast(parser: argparse._ActionsContainer) -> None:
    """The option of `fast`."""
    fast_help = "Winograd's convolutions and packed weights: float32 on a CPU is faster, to other last bits"
    parser.add_argument("--fast", action="store_true", help=f"{fast_help}; takes more memory")


@contextmanager
def fast(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[None]:
    """A context in which --fast has its effect."""
    if args.fast and (model.dtype, model.device.type) != (torch.float32, "cpu"):
        told = f"--fast is for float32 on the cpu, and changes nothing for {model.dtype} on {model.device}"
        warnings.warn(f"{told}; leave it out, or give --dtype float32 --device cpu", stacklevel=2)
    with ExitStack() as stack:
        for adapter in (Packed(), Winograd()) if args.fast else ():
            stack.enter_context(adapter.attached(model))
        yield


def own_tiny_decoder(folder: str | Path, model: minti.StableDiffusion) -> TinyVAE | None:
    """The tiny decoder in a model's folder, for previews; None where there is none."""
    path = Path(folder) / "tiny_decoder"
    return TinyVAE.from_pretrained(path, model) if path.is_dir() else None


def weighted(text: str) -> tuple[Path, float]:
    """The type of an option that takes a file and its weight."""
    if "=" not in text or Path(text).exists():
        return Path(text), 1.0
    path, weight = text.rsplit("=", 1)
    return Path(path), finite(weight)


def load_words(model: minti.StableDiffusion, files: Sequence[str], prompts: Sequence[str | None]) -> None:
    """Loads the learned words of FILE or FILE=NAME options; warns of one that none of the prompts says."""
    for given in files:
        path, name = (given, None) if Path(given).exists() or "=" not in given else given.rsplit("=", 1)
        words = minti.load_embeddings(model, path, name)
        if distributed.rank() == 0:
            print(f"{path}: {', '.join(words)}")
        for word in words:
            said = (token_ids(prompt, model.tokenizer, model.words) for prompt in prompts if prompt)
            if not any(model.words[word][0] in ids for ids in said):
                warnings.warn(f"{path}: no prompt says {word}, so it changes nothing", stacklevel=2)


@contextmanager
def attached(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[Encode]:
    """A context in which the adapters of the command line are attached; yields what encodes the prompts.

    Raises ValueError, OSError: one of the files is missing, does not fit it, or is given twice.
    """
    if (args.ip_adapter is None) != (args.ip_image is None):
        raise ValueError("--ip-adapter and --ip-image go together: the adapter makes the image a prompt")
    adapter, embedding = None, None

    def encode(prompts: Sequence[str] | Tensor, with_image: bool = True) -> Sequence[str] | Tensor:
        if adapter is None:
            return prompts
        context = prompts if isinstance(prompts, Tensor) else model.encode_prompt(prompts)
        return adapter.prompted(context, embedding if with_image else None)

    files = [path.resolve() for path, _ in args.lora]
    with ExitStack() as stack:
        for path, weight in args.lora:
            if files.count(path.resolve()) > 1:
                raise ValueError(
                    f"--lora {path} is given {files.count(path.resolve())} times; give it once, with its weight"
                )
            lora = minti.load_lora(model, path, weight)
            stack.enter_context(lora.attached(model))
            if distributed.rank() == 0:
                print(f"{path}: a LoRA of {len(lora.pairs)} layers, weight {weight:g}")
        if args.vector_table is not None:
            table = load_table(model, args.vector_table)
            stack.enter_context(table.attached(model))
            if distributed.rank() == 0:
                print(
                    f"{args.vector_table}: {table.name}, for {table.layers} layers and {table.ranges} timestep ranges"
                )
        if args.hint or args.controlnet:
            control, path = controlnet(args, model)
            stack.enter_context(control.attached(model))
            if distributed.rank() == 0:
                print(f"{path}: a ControlNet, scale {control.scale:g}, and {args.hint}")
        if args.ip_adapter is not None:
            adapter, embedding = ip_adapter(args, model)
            stack.enter_context(adapter.attached(model))
        if args.deep_cache > 1:
            stack.enter_context(DeepCache(args.deep_cache).attached(model))
        if args.tiny_decoder is not None:
            stack.enter_context(TinyVAE.from_pretrained(args.tiny_decoder, model).attached(model))
        stack.enter_context(fast(args, model))
        yield encode


def controlnet(args: argparse.Namespace, model: minti.StableDiffusion) -> tuple[ControlNet, Path]:
    """The ControlNet with its hint, and where it is from.

    Raises ValueError: a ControlNet without a hint, a hint without a ControlNet or of another size than the sample.
    """
    path, own = args.controlnet, Path(args.model) / "controlnet"
    if not args.hint:
        raise ValueError(f"--controlnet {path} needs a hint; give --hint IMAGE, too")
    if path is None and not own.is_dir():
        raise ValueError(f"--hint {args.hint} needs a ControlNet, and {args.model} has none; give --controlnet FOLDER")
    hint = on_black(open_image(args.hint, alpha=True))
    size = tuple(getattr(args, side, None) or model.resolution for side in ("height", "width"))  # not all scripts ask
    if hint.size != size[::-1]:
        was = f"{hint.height} x {hint.width}"
        raise ValueError(f"--hint {args.hint} is {was} pixels, and the sample {size[0]} x {size[1]}; make them equal")
    control = ControlNet.from_pretrained(path or own, model)
    control.hint = torch.from_numpy(np.array(hint)).permute(2, 0, 1)[None] / 255  # h w c -> 1 c h w
    control.scale = args.control_scale
    return control, path or own


def ip_adapter(args: argparse.Namespace, model: minti.StableDiffusion) -> tuple[IPAdapter, Tensor]:
    """The adapter, and the image's embedding, (1, clip_dim), by the model's own CLIP or --ip-encoder's."""
    adapter, image = load_ip_adapter(model, args.ip_adapter, args.ip_scale), open_image(args.ip_image)
    if args.ip_encoder is not None:
        embedding = load_image_encoder(args.ip_encoder, model.device)(image)
    elif clip := own_clip(model, args.model):
        embedding = clip.images([image])
    else:
        missing = "--ip-encoder is missing, the IP-Adapter's CLIP image encoder"
        raise ValueError(f"{missing}: a folder, or h94/IP-Adapter/models/image_encoder")
    expected = adapter.image_proj["proj"].in_features
    if embedding.shape[1] != expected:
        raise ValueError(
            f"{args.ip_adapter} takes {expected} numbers for an image, its CLIP gives {embedding.shape[1]}; "
            "give the --ip-encoder that it was trained with"
        )
    if distributed.rank() == 0:
        print(f"{args.ip_adapter}: an IP-Adapter, image {args.ip_image}, scale {args.ip_scale:g}")
    return adapter, embedding


def own_clip(model: minti.StableDiffusion, folder: str) -> Clip | None:
    """The CLIP in the model's own folder, as the toybox has one; None where there is none."""
    if not (Path(folder) / "evaluation" / "clip.safetensors").is_file():
        return None
    sys.path.append(str(TOYBOX))
    from toy_clip import load_toy_clip

    return load_toy_clip(model, folder)
