"""The original single file of SD v1 (CompVis's names), `.safetensors` or `.ckpt`: UNet, VAE and text encoder. What else
the file holds, such as an averaged copy of the UNet and the optimizer's state, is ignored."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from minti.configs import TextConfig
from minti.formats.tensors import read_content
from minti.loading import load_network, make_text_encoder
from minti.scheduler import SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

SCHEDULER_CONFIG = SchedulerConfig(steps_offset=1)  # as in the release's own config file
# Names in blocks: today's, and the original's.
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
RESNET |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
UNET_ENDS |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(key: str, config: UNetConfig, ema: bool = False) -> str:
    """A key of `UNet.state_dict()` to its name in the file. `ema`: its name in the averaged copy.

    The original counts blocks through: each resnet with its attention, and each downsampling, is an input block; each
    resnet with its attention and the upsampling behind it an output block."""
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
        name = re.sub(rf"\b({'|'.join(RESNET)})\b", lambda m: RESNET[m[1]], name)
    for new, old in UNET_ENDS.items():
        name = re.sub(rf"^{new}\.", f"{old}.", name)
    return "model_ema." + f"diffusion_model.{name}".replace(".", "") if ema else f"model.diffusion_model.{name}"


def vae_name(key: str, config: VAEConfig) -> str:
    """A key of the VAE to its name in the file, where the decoder's levels are counted from the finest."""
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
    """A key of the text encoder to its name in the file. `level`: "" in some merged files, which lack it."""
    return f"cond_stage_model.transformer.{level}{key.removeprefix('text_model.')}"


def read_file(path: Path, missing: str = ": no such file") -> dict[str, Tensor]:
    """All tensors of a single file by their names in it."""
    content = read_content(path, missing)
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no state_dict; expected an original SD v1 file")
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor) and isinstance(name, str)}


def picked(name_of: Callable[[str], str], tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network in a file, by the network's own names."""
    return {key: tensors[name_of(key)] for key in network.state_dict() if name_of(key) in tensors}


def load_single_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    ema: bool = False,
    configs: tuple[UNetConfig, VAEConfig, TextConfig] | None = None,
) -> tuple[UNet, VAE, CLIPTextModel]:
    """The networks of an original file. dtype: None keeps the file's. ema: the UNet's averaged copy. configs: SD v1's
    when absent. Raises ValueError: damaged, or a part is missing or of another architecture; names file and tensor."""
    unet, vae, text = configs or (UNetConfig(), VAEConfig(), TextConfig())
    tensors = read_file(path)
    level = "" if text_name("embeddings.token_embedding.weight", "") in tensors else "text_model."

    def load(part: str, make: Callable[[], nn.Module], name_of: Callable[[str], str]) -> Any:
        def names(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
            expected, found = network.state_dict(), picked(name_of, tensors, network)
            if not found:
                example = f"such as {name_of(min(expected))}"
                wanted = "expected an original file with UNet, VAE and text encoder"
                raise ValueError(f"{path} has no {part} of SD v1 ({example}); {wanted}")
            # The VAE's attention was made of 1 x 1 convolutions.
            return {key: t[..., 0, 0] if t.ndim == expected[key].ndim + 2 else t for key, t in found.items()}

        return load_network(make, path, device, dtype, names, tensors=tensors, name_in_file=name_of)

    return (
        load("averaged UNet" if ema else "UNet", lambda: UNet(unet), lambda key: unet_name(key, unet, ema)),
        load("VAE", lambda: VAE(vae), lambda key: vae_name(key, vae)),
        load("text encoder", lambda: make_text_encoder(text), lambda key: text_name(key, level)),
    )
