"""Super-resolution by concatenation: the UNet also sees a low-resolution image, and how much noise was added to it
(Cascaded Diffusion Models, arXiv 2106.15282; SR3, 2104.07636; `001`, "Cascaded Diffusion Models"; `003`, 21, 35, 46).

    ε_θ([x_t; z_s], t, s),   z_s = √ᾱ_s z + √(1 - ᾱ_s) ε    conditioning augmentation: q(z_s given z) on the low image z
    W [x; y] = W_x x + W_y y,   e = e_t + E_s               the first convolution, and the embedding of the timestep

W_x and e_t are the UNet's own, W_y and E begin at zero: at first the model computes bit for bit what it computes alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.model import StableDiffusion
from minti.scheduler import NoiseScheduler
from minti.unet import UNet
from minti.utils import Generators, randn

CONV_IN, LEVELS = "conv_in.weight", "class_embedding.weight"  # in diffusers' network


class SuperResolution(Adapter):
    """The second `conv_in`, for the low image, and the embedding of the augmentation level. The UNet is trained along,
    or a LoRA, or nothing else.
    low: (b or 1, 3, h', w') in [-1, 1], augmented already; any size, it is enlarged to the latents'; None: off.
    level: s, an int for all or (b or 1,), 0 for an image without noise."""

    name = "the super-resolution adapter"

    def __init__(self, unet: UNet, channels: int = 3, levels: int = 1000):
        super().__init__()
        width = unet.config.block_out_channels[0]
        self.conv_in = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.levels = nn.Embedding(levels, 4 * width)
        for parameter in self.to(unet.conv_in.weight.device).parameters():
            nn.init.zeros_(parameter)
        self.low: Tensor | None = None
        self.level: int | Tensor = 0

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Adds W_y y to the first feature map and E_s to the timestep's embedding."""
        yield model.unet.conv_in.register_forward_hook(self._see).remove
        yield model.unet.time_embedding.register_forward_hook(self._tell).remove

    def _see(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self.low is None:
            return output
        low = enlarged(self.low.to(self.conv_in.weight), output.shape[-2:])
        return output + self.conv_in(repeated(low, len(output), "low images")).to(output.dtype)

    def _tell(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self.low is None:
            return output
        level = torch.as_tensor(self.level, device=output.device).reshape(-1)
        if not 0 <= level.min() <= level.max() < self.levels.num_embeddings:
            raise ValueError(f"level = {self.level}; expected 0 to {self.levels.num_embeddings - 1}")
        return output + self.levels(repeated(level, len(output), "levels")).to(output.dtype)

    def concatenated(self, unet: UNet) -> dict[str, Tensor]:
        """The weights of both as one network's, diffusers' `UNet2DConditionModel` with `in_channels` for [x; y] and
        `num_class_embeds` for s: how `StableDiffusionUpscalePipeline` has them."""
        both = torch.cat([unet.conv_in.weight, self.conv_in.weight.to(unet.conv_in.weight)], dim=1)
        tensors = unet.state_dict() | {CONV_IN: both, LEVELS: self.levels.weight}
        return {key: tensor.detach() for key, tensor in tensors.items()}

    @classmethod
    def separated(cls, tensors: dict[str, Tensor], unet: UNet) -> "SuperResolution":
        """The opposite of `concatenated`: writes the UNet's part into `unet`, and returns the adapter of the rest.
        Raises ValueError: the weights are of no such network."""
        own, channels = dict(tensors), unet.config.in_channels
        try:
            both, levels = own[CONV_IN], own.pop(LEVELS)
            own[CONV_IN] = both[:, :channels]
            adapter = cls(unet, both.shape[1] - channels, len(levels))
            adapter.load_state_dict({"conv_in.weight": both[:, channels:], "levels.weight": levels})
            unet.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are not the weights of super-resolution for this UNet: {error}") from None
        return adapter


def repeated(values: Tensor, count: int, name: str) -> Tensor:
    """(b, ...) as often as guidance repeats the images, in the same order: -> (count, ...)."""
    if count % len(values):
        raise ValueError(f"{len(values)} {name} for {count} images; give one, or one for each image")
    return values.repeat(count // len(values), *[1] * (values.ndim - 1))


def enlarged(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic enlargement, (b, c, h', w') -> (b, c, *size); an image of that size stays as it is."""
    return low if low.shape[-2:] == size else F.interpolate(low, size=size, mode="bicubic", align_corners=False)


def augmented(low: Tensor, level: int | Tensor, scheduler: NoiseScheduler, generator: Generators) -> Tensor:
    """Non-truncated conditioning augmentation, z_s of q(z_s given z); level 0 leaves the image as it is, where the
    schedule's own step 0 would add its first bit of noise."""
    level = torch.as_tensor(level, device=low.device).expand(len(low))
    noisy = scheduler.add_noise(low, randn(low.shape, generator, low.device, low.dtype), level)
    return torch.where((level > 0)[:, None, None, None], noisy, low)
