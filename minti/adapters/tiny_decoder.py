"""A tiny decoder (TAESD, github.com/madebyollin/taesd): convolutions and ReLUs in place of the VAE's decoder, distilled
from it, for previews and for whole images when time matters more than detail.

The submodules' names are those of diffusers' `AutoencoderTiny`."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.configs import read_config
from minti.formats.single_file import read_file
from minti.formats.tensors import check_finite, write_tensors
from minti.loading import NETWORK, load_network
from minti.model import StableDiffusion
from minti.runs.files import replacing
from minti.vae import VAEConfig

# Of the other keys of its config, which are the encoder's, nothing is asked.
ONLY = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,), "": None}


@dataclass(frozen=True)
class TinyConfig(VAEConfig):
    """The keys that size the decoder; the defaults are TAESD's, and `layers_per_block`, `norm_num_groups` mean nothing.
    num_decoder_blocks: at each size, from the latents' up."""

    block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0  # it takes the latents as the UNet sees them


class TinyBlock(nn.Module):
    """Three convolutions, and a way round: (b, c, h, w) -> same."""

    def __init__(self, c: int):
        super().__init__()
        convs = [nn.Conv2d(c, c, kernel_size=3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class TinyDecoder(nn.Module):
    """Scaled latents to pixels: (b, c, h, w) -> (b, 3, H, W), about [-1, 1] but not clamped."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.config = config
        sizes, blocks = config.block_out_channels, config.num_decoder_blocks
        if len(sizes) != len(blocks) or len(set(sizes)) != 1:
            raise ValueError(f"{sizes} channels for {blocks} blocks; expected as many, and all channels equal")
        layers = [nn.Conv2d(config.latent_channels, sizes[0], kernel_size=3, padding=1), nn.ReLU()]
        for count in blocks:
            layers += [TinyBlock(sizes[0]) for _ in range(count)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(sizes[0], sizes[0], kernel_size=3, padding=1, bias=False)]
        layers[-2:] = [nn.Conv2d(sizes[0], config.out_channels, kernel_size=3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        x = torch.tanh(latents / 3) * 3  # a soft clamp: few latents are above 3
        return self.layers(x).mul(2).sub(1)


class TinyVAE(Adapter):
    """A tiny decoder as an adapter: attached, it decodes in place of the model's VAE, which still encodes."""

    name = "the tiny decoder"

    def __init__(self, decoder: TinyDecoder):
        super().__init__()
        self.decoder = decoder

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) to images (b, 3, H, W), not clamped."""
        return self.decoder((latents / self.decoder.config.scaling_factor).to(self.decoder.layers[0].weight))

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces the VAE's `decode`. Raises ValueError: it is for other latents, or not the first one."""
        self.check(model)
        if "decode" in vars(model.vae):
            raise ValueError("a tiny decoder is attached to the model already; one is enough")
        model.vae.decode = lambda latents: self.decode(model.scale(latents))
        yield lambda: delattr(model.vae, "decode")

    def check(self, model: StableDiffusion) -> None:
        """Raises ValueError: it is for other latents than the model's."""
        own, other = ((c.latent_channels, c.factor) for c in (self.decoder.config, model.vae.config))
        if own != other:
            latents = "{} channels, {} pixels wide".format
            raise ValueError(f"the tiny decoder is for latents of {latents(*own)}; the model's are {latents(*other)}")

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], model: StableDiffusion) -> "TinyVAE":
        """A frozen one, in the model's dtype and on its device, from diffusers' folder of an `AutoencoderTiny`, the
        file in it, or TAESD's own `taesd_decoder` file.
        Raises OSError, ValueError: missing, damaged, or another network's; names file and key."""
        path = Path(source) / f"{NETWORK}.safetensors" if Path(source).is_dir() else Path(source)
        tensors = read_file(
            path, " is missing; a tiny decoder is diffusers' folder of an AutoencoderTiny, or TAESD's own"
        )
        called, config = str, TinyConfig()
        if not {"decoder.layers.0.weight", "1.weight"} & tensors.keys():
            names = "decoder.layers.0.weight, of an AutoencoderTiny, or 1.weight, of TAESD's own file"
            raise ValueError(f"{path} is no tiny decoder; expected a tensor {names}")
        if "decoder.layers.0.weight" in tensors:
            called = "decoder.{}".format
            config = read_config(TinyConfig, path.with_name("config.json"), **ONLY)
            tensors = {key.removeprefix("decoder."): x for key, x in tensors.items() if key.startswith("decoder.")}
        else:  # TAESD's layers are numbered from 1; its 0 is the clamp
            called = lambda key: re.sub(r"layers\.(\d+)", lambda match: str(int(match[1]) + 1), key)  # noqa: E731
            number = lambda key: re.sub(r"^(\d+)", lambda match: f"layers.{int(match[1]) - 1}", key)  # noqa: E731
            tensors = {number(key): tensor for key, tensor in tensors.items()}
        options = {"tensors": tensors, "name_in_file": called}
        decoder = load_network(lambda: TinyDecoder(config), path, model.device, model.dtype, **options)
        check_finite(path, decoder.state_dict(), called)
        (tiny := cls(decoder)).check(model)
        return tiny

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder that `from_pretrained` reads. Raises OSError, ValueError."""
        tensors = {f"decoder.{key}": tensor.to(dtype) for key, tensor in self.decoder.state_dict().items()}
        config = {"_class_name": "AutoencoderTiny"} | asdict(self.decoder.config)
        config["decoder_block_out_channels"] = config["block_out_channels"]  # diffusers has both
        del config["layers_per_block"], config["norm_num_groups"]
        write_tensors(Path(folder) / f"{NETWORK}.safetensors", tensors)
        with replacing(Path(folder) / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
