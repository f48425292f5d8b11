"""The original release in one file (CompVis names): UNet, VAE and text encoder, `.safetensors` or `.ckpt`.

Each part asks for the tensors that it needs, under the names that they had; whatever else the file holds (a second,
averaged copy of the UNet, optimizer and loss state) is never touched.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from minti.configs import TextConfig
from minti.formats import hub
from minti.formats.pickles import read_pickle
from minti.formats.tensors import read_tensors
from minti.loading import load_network, make_text_encoder
from minti.scheduler import SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

# What the release's own config file says where it is not the config's default.
SCHEDULER_CONFIG = SchedulerConfig(steps_offset=1)

# The insides of blocks: a pattern of today's names, and the name of then.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(key: str, config: UNetConfig, ema: bool = False) -> str:
    """The UNet's key, as in `UNet.state_dict()`, to its name in the file.

    The old UNet counts its blocks in one row: every resnet (with its attention) and every downsampling is an input
    block, every resnet (with its attention and the upsampling behind it) an output block.

    `ema`: the name of the averaged copy.
    """
    per_level = config.layers_per_block + 1
    name = key
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key):
        side, level, kind, i, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        attends = side == "up" and config.up_block_types[level].startswith("CrossAttn")
        inside = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 1 + attends}[kind]
        place = level * per_level + (per_level - 1 if kind.endswith("samplers") else i)
        name = f"input_blocks.{1 + place}" if side == "down" else f"output_blocks.{place}"
        name += f".{inside}.{rest.replace('conv', 'op') if kind == 'downsamplers' else rest}"
    elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        name = f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
    if "resnets" in key:
        name = re.sub(r"\b(norm1|conv1|time_emb_proj|norm2|conv2|conv_shortcut)\b", lambda m: RESNET[m[1]], name)
    for new, old in UNET_ENDS.items():
        name = re.sub(rf"^{new}\.", f"{old}.", name)
    return "model_ema." + f"diffusion_model.{name}".replace(".", "") if ema else f"model.diffusion_model.{name}"


def vae_name(key: str, config: VAEConfig) -> str:
    """The VAE's key to its name in the file, where the decoder's levels are counted from the finest."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    coarsest = len(config.block_out_channels) - 1
    name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{coarsest - int(m[1])}.", name)
    name = name.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample")
    name = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0." in name:
        stem, rest = name.split("mid_block.attentions.0.")
        part, kind = rest.rsplit(".", 1)
        name = f"{stem}mid.attn_1.{VAE_ATTENTION[part]}.{kind}"
    return f"first_stage_model.{name}"


def text_name(key: str, level: str = "text_model.") -> str:
    """The text encoder's key, with the level `text_model.` or without, to its name in the file.

    `level`: "" for the name in merged files, some of which have lost the level.
    """
    return f"cond_stage_model.transformer.{level}{key.removeprefix('text_model.')}"


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a single file by the names that it gives them."""
    content = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no state_dict; expected an original SD v1 file")
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor) and isinstance(name, str)}


def load_single_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    ema: bool = False,
    configs: tuple[UNetConfig, VAEConfig, TextConfig] | None = None,
) -> tuple[UNet, VAE, CLIPTextModel]:
    """The three networks of an original file.

    Args:
        dtype: None keeps the file's.
        ema: take the UNet's averaged copy.
        configs: SD v1's when absent.

    Raises ValueError: the file is damaged, or a part is missing or of another architecture; names file and tensor.
    """
    unet, vae, text = configs or (UNetConfig(), VAEConfig(), TextConfig())
    tensors = read_file(path)
    level = "" if text_name("embeddings.token_embedding.weight", "") in tensors else "text_model."

    def load(part: str, make: Callable[[], nn.Module], name_of: Callable[[str], str]) -> Any:
        def names(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
            expected = network.state_dict()
            found = {key: tensors[name_of(key)] for key in expected if name_of(key) in tensors}
            if not found:
                example = (
                    f"(such as {name_of(min(expected))}); expected an original file with UNet, VAE and text encoder"
                )
                raise ValueError(f"{path} has no {part} of SD v1 {example}")
            # The VAE's attention was made of 1 x 1 convolutions.
            return {key: t[..., 0, 0] if t.ndim == expected[key].ndim + 2 else t for key, t in found.items()}

        return load_network(make, path, device, dtype, names, tensors=tensors, name_in_file=name_of)

    return (
        load("averaged UNet" if ema else "UNet", lambda: UNet(unet), lambda key: unet_name(key, unet, ema)),
        load("VAE", lambda: VAE(vae), lambda key: vae_name(key, vae)),
        load("text encoder", lambda: make_text_encoder(text), lambda key: text_name(key, level)),
    )


def tokenizer_beside(path: Path, folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a single file's CLIP tokenizer: the one given, or `tokenizer` beside the file, or the hub's."""
    beside = path.parent / "tokenizer"
    return Path(folder) if folder else beside if beside.is_dir() else hub.download_tokenizer()
