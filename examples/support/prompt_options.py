"""Prompts as people write them: weights, more than 77 tokens, clip skip, and LoRAs named in a prompt."""

from support.command_line import finite, whole

import argparse
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import minti
from minti.prompts.long_prompts import padded
from minti.prompts.syntax import SYNTAXES
from minti.runs.messages import short_repr, shortened

Read = Callable[[Sequence[str]], Sequence[str] | Tensor]  # prompts to what `minti.sample` takes
TAG = re.compile(r"<lora:([^:<>]+)(?::([^<>]*))?>")
SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("how prompts are read")
    weights_help = (
        "read weights: (red:1.4), [red] and BREAK as AUTOMATIC1111, with or without its scaling to the former mean, or "
        "red++ and (red)0.5 as compel; default: as letters"
    )
    group.add_argument("--prompt-weights", choices=SYNTAXES, help=weights_help)
    long_help = "join chunks of 75 tokens; all prompts are made as long as the longest; default: cut, with a warning"
    group.add_argument("--long-prompts", action="store_true", help=long_help)
    skip_help = "leave out the text encoder's last N layers; AUTOMATIC1111's number is one more; default: 0"
    group.add_argument("--clip-skip", type=whole(0), default=0, metavar="N", help=skip_help)
    lora_help = "where the LoRAs are that prompts name: <lora:NAME:0.8> is NAME.safetensors with that weight"
    group.add_argument("--lora-dir", type=Path, metavar="FOLDER", help=lora_help)


def reader(args: argparse.Namespace, model: minti.StableDiffusion) -> Read:
    """What reads the prompts of the command line by these options: as contexts of one length, each encoded once and
    alone, so that an image does not depend on its batch; without options as they are."""
    options = {"weights": args.prompt_weights, "long_prompts": args.long_prompts, "clip_skip": args.clip_skip}
    if not any(options.values()):
        return lambda prompts: prompts
    said = [*args.prompts, *args.extra_prompt, args.negative_prompt, *([args.source] if args.source else [])]
    with torch.no_grad():
        contexts = {prompt: model.encode_prompt(prompt, **options) for prompt in dict.fromkeys(said)}  # 1 m d
        empty = model.encode_prompt("", clip_skip=args.clip_skip)
    longest = max(context.shape[1] for context in contexts.values())
    return lambda prompts: torch.cat([padded(contexts[prompt], longest, empty) for prompt in prompts])


def take_loras(args: argparse.Namespace) -> None:
    """Takes `<lora:NAME:WEIGHT>` out of the prompts, and adds the files of that name in --lora-dir to --lora.
    Raises ValueError, OSError: a tag that is not closed, without a number or of an unknown name; prompts that differ
    in their LoRAs, which are attached to the model for all of them."""
    for prompt in [*args.extra_prompt, args.negative_prompt, args.source or ""]:
        if "<lora:" in prompt:
            raise ValueError(f"a LoRA is named in PROMPT, where it is for all others too, not in {short_repr(prompt)}")
    named = [tags(prompt) for prompt in args.prompts]
    if any(one != named[0] for one in named):
        raise ValueError("the prompts name different LoRAs, which would be for all of them; sample them one by one")
    args.prompts = list(dict.fromkeys(TAG.sub("", prompt).strip() for prompt in args.prompts))
    if args.lora_dir is None and named[0]:
        (name, weight), *_ = named[0]
        how = f"give --lora-dir FOLDER, where {name}.safetensors is, or in place of the tag --lora FILE={weight:g}"
        raise ValueError(f"the prompt names the LoRA {short_repr(name)}; {how}")
    if args.lora_dir is not None and not named[0]:
        warnings.warn(f"--lora-dir {args.lora_dir}: no prompt names a LoRA, as in <lora:NAME:0.8>", stacklevel=2)
    args.lora = args.lora + [(find_lora(args.lora_dir, name), weight) for name, weight in named[0]]


def tags(prompt: str) -> list[tuple[str, float]]:
    """The LoRAs that a prompt names, with their weights, by default 1. Raises ValueError: what is wrong with a tag."""
    if "<lora:" in TAG.sub("", prompt):
        raise ValueError(
            f"a tag of the prompt {short_repr(prompt)} is not closed or has no name; write <lora:NAME:0.8>"
        )
    try:
        return [(name, finite(weight) if weight else 1.0) for name, weight in TAG.findall(prompt)]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"the weight of a LoRA in the prompt {short_repr(prompt)}: {error}") from None


def find_lora(folder: Path, name: str) -> Path:
    """The file of that name, in the folder or below. Raises OSError, ValueError: there is none, or several."""
    if not folder.is_dir():
        raise OSError(f"--lora-dir {folder} is no folder")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    found = [path for path in files if path.stem == name]
    if not found:
        there = shortened(", ".join(path.stem for path in files)) or "none at all"
        raise ValueError(f"--lora-dir {folder} has no LoRA {short_repr(name)}; it has {there}")
    if len(found) > 1:
        raise ValueError(
            f"--lora-dir {folder} has several LoRAs {short_repr(name)}: {shortened(', '.join(map(str, found)))}"
        )
    return found[0]
