"""ControlNet: a trainable copy of the UNet's encoder half that also gets a hint image (an outline, a pose, ...).

    y = F(x; θ) + Z(F(x + Z(c; θ_z1); θ_c); θ_z2)        (arXiv 2302.05543, eq. 2; `003`, 18)

F is a block, with frozen weights θ or the copy's θ_c; c the hint's features; Z a zero convolution, whose weights and
biases begin at zero, so that at first y = F(x; θ). Submodules are named as in diffusers' files."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.configs import read_config
from minti.formats.shards import read_part
from minti.formats.single_file import picked, read_file, unet_name
from minti.formats.tensors import check_finite, write_tensors
from minti.loading import NETWORK, load_network
from minti.model import StableDiffusion
from minti.runs.files import replacing
from minti.unet import EncoderHalf, UNet, UNetConfig

ONLY = {"conditioning_channels": (3,), "controlnet_conditioning_channel_order": ("rgb",)}  # in its config


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """The UNet's keys, of which those of the decoder half have no effect; and the hint encoder's channels."""

    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)


class HintEncoder(nn.Module):
    """Downsamples a hint image to the latents' size: (b, 3, H, W) -> (b, channels, h, w). (The paper has four 4 × 4
    convolutions; its code, and all trained ControlNets, these.)"""

    def __init__(self, widths: tuple[int, ...], channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        for c_in, c_out in pairwise(widths):
            self.blocks.append(nn.Conv2d(c_in, c_in, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv_in, *self.blocks):
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNetwork(EncoderHalf):
    """The network of a ControlNet: the copied encoder half, the hint encoder and the zero convolutions."""

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        widths, sizes = config.conditioning_embedding_out_channels, config.block_out_channels
        self.factor = 2 ** (len(widths) - 1)  # of a hint's size to the latents'
        self.controlnet_cond_embedding = HintEncoder(widths, sizes[0])
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, kernel_size=1) for c in self.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(sizes[-1], sizes[-1], kernel_size=1)

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """What is added to the results of `UNet.left`: x and the skips. `hint`: (b, 3, H, W) in [0, 1]."""
        time_emb = self.embed_time(timesteps, noisy_latents.dtype)
        x, skips = self.left(noisy_latents, time_emb, context, self.controlnet_cond_embedding(hint))
        return self.controlnet_mid_block(x), [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips)]


@torch.no_grad()
def copied(unet: UNet, factor: int, generator: torch.Generator) -> ControlNetwork:
    """An untrained ControlNet, float32, copied from the UNet; `factor` is that of the VAE, and at most 8."""
    widths = ControlNetConfig.conditioning_embedding_out_channels[: factor.bit_length()]  # 8 is halved three times
    with torch.device("meta"):
        network = ControlNetwork(ControlNetConfig(**asdict(unet.config), conditioning_embedding_out_channels=widths))
    network.to_empty(device=unet.conv_in.weight.device)
    for name, parameter in network.named_parameters():
        parameter.zero_() if name.startswith("controlnet_") else parameter.copy_(unet.get_parameter(name))
    for conv in (network.controlnet_cond_embedding.conv_in, *network.controlnet_cond_embedding.blocks):
        bound = conv.weight[0].numel() ** -0.5  # as torch draws a convolution
        for parameter in (conv.weight, conv.bias):
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return network


class ControlNet(Adapter):
    """A ControlNet as an adapter of a model.
    hint: (b or 1, 3, H, W) in [0, 1], what the images should follow; None switches it off.
    scale: the weight of its outputs."""

    name = "the ControlNet"

    def __init__(self, network: ControlNetwork, hint: Tensor | None = None, scale: float = 1.0):
        super().__init__()
        self.network, self.hint, self.scale = network, hint, scale
        self._answer: tuple[Tensor, list[Tensor]] | None = None
        self._longest = 1  # token; attached, those of a text, of which a context has a multiple

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Adds the ControlNet's residuals to the UNet's skips. Raises ValueError: of another architecture."""
        for key in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"):
            own, other = getattr(self.network.config, key), getattr(model.unet.config, key)
            if own != other:
                raise ValueError(f"the ControlNet was made for a model with {key} = {own}; this one has {other}")
        self._longest = model.tokenizer.model_max_length  # what is behind the text is another part's
        yield model.unet.register_forward_pre_hook(self._look).remove
        yield model.unet.up_blocks[0].register_forward_pre_hook(self._add).remove

    def _look(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._answer = None if self.hint is None else self.answer(*inputs)

    def _add(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._answer is None:
            return None
        (mid, down), self._answer = self._answer, None
        x, skips, *condition = inputs
        skips[:] = [skip + self.scale * added.to(skip.dtype) for skip, added in zip(skips, down)]
        return x + self.scale * mid.to(x.dtype), skips, *condition

    def answer(self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The network's outputs for the UNet's inputs and the hint, in its own dtype."""
        count, (height, width) = len(noisy_latents), (self.network.factor * n for n in noisy_latents.shape[-2:])
        if self.hint.shape[1:] != (3, height, width) or count % len(self.hint):
            shape = tuple(self.hint.shape)
            raise ValueError(f"the hint has shape {shape}; the images need (b or 1, 3, {height}, {width})")
        weight, text = self.network.conv_in.weight, context.shape[1] // self._longest * self._longest
        hint = self.hint.to(weight).repeat(count // len(self.hint), 1, 1, 1)
        return self.network(noisy_latents.to(weight), timesteps, context[:, :text].to(weight), hint)

    @classmethod
    def beside(cls, model: StableDiffusion, generator: torch.Generator) -> "ControlNet":
        """An untrained one, in float32; attached, it changes no bit of the model's samples."""
        return cls(copied(model.unet, model.vae.config.factor, generator))

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], model: StableDiffusion, sizes: ControlNetConfig | None = None
    ) -> "ControlNet":
        """A frozen one, in the model's dtype and on its device, from diffusers' folder, the file in it, or an original
        file. `sizes`: of an original file, which has no config; SD v1's when absent.
        Raises OSError, ValueError: missing, damaged, not finite, or of another architecture; names file and key."""
        if Path(source).is_dir():
            path, tensors = read_part(Path(source), NETWORK, None, None)
        else:
            path = Path(source)
            tensors = read_file(path, " is missing; a ControlNet is diffusers' folder, or the original's file")
        called, rename = str, lambda tensors, network: tensors
        if any(key.startswith("controlnet_") for key in tensors):
            config = read_config(ControlNetConfig, path.with_name("config.json"), **ONLY)
        else:
            config = sizes or ControlNetConfig()
            prefix = "control_model." if any(key.startswith("control_model.") for key in tensors) else ""
            called = lambda key: prefix + controlnet_name(key, config)  # noqa: E731
            rename = partial(picked, called)  # the file may hold more, such as a whole SD v1
            if "difference" in tensors:  # to the UNet's own weights
                own = {called(key): tensor.cpu().float() for key, tensor in model.unet.state_dict().items()}
                fit = [key for key, x in tensors.items() if key in own and x.shape == own[key].shape]  # or it is told
                tensors |= {key: tensors[key].float() + own[key] for key in fit}
        options = {"tensors": tensors, "name_in_file": called}
        network = load_network(lambda: ControlNetwork(config), path, model.device, model.dtype, rename, **options)
        check_finite(path, network.state_dict(), called)
        return cls(network)

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder that `from_pretrained` and diffusers' `ControlNetModel` read. Raises OSError, ValueError."""
        tensors = {key: tensor.to(dtype) for key, tensor in self.network.state_dict().items()}
        config = {"_class_name": "ControlNetModel"} | asdict(self.network.config)
        for key in ("sample_size", "out_channels", "up_block_types"):  # the decoder half's
            del config[key]
        write_tensors(Path(folder) / f"{NETWORK}.safetensors", tensors)
        with replacing(Path(folder) / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def controlnet_name(key: str, config: ControlNetConfig) -> str:
    """A key of a ControlNet to its name in the original file, without `control_model.` in front."""
    name = unet_name(key, config).removeprefix("model.diffusion_model.")
    name = re.sub(r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0", name)
    name = name.replace("controlnet_mid_block", "middle_block_out.0")
    count = 2 * len(config.conditioning_embedding_out_channels) - 2
    convs = ["conv_in", *(f"blocks.{i}" for i in range(count)), "conv_out"]  # each counts with its activation
    hint = r"controlnet_cond_embedding\.(.*)\."
    return re.sub(hint, lambda match: f"input_hint_block.{2 * convs.index(match[1])}.", name)
