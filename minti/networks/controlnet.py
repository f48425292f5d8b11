"""ControlNet: a copy of the UNet's left half that also sees a hint, and tells the right half what it makes of it.

y = F(x; θ) + Z(F(x + Z(c; θ_z1); θ_c); θ_z2)        (arXiv 2302.05543, eq. 2; `003`, 18)

F is a block with its frozen weights θ, or as the copy θ_c; c the hint's features. The weights and biases of a zero
convolution Z begin as zeros: at first y = F(x; θ), whatever the hint. Submodules are named as in diffusers' files.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.networks.unet import LeftHalf, UNet, UNetConfig


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """The UNet's keys, of which those of its right half size nothing; and the hint encoder's channels at every size."""

    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)


class HintEncoder(nn.Module):
    """Halves a picture to the latents' size: (b, 3, H, W) -> (b, channels, h, w). The paper has four convolutions of
    4 × 4, its code and all trained ControlNets these."""

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


class ControlNetwork(LeftHalf):
    """The copy, the hint encoder and the zero convolutions, sized by the config."""

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
        """What is to be added to the result of `UNet.left`, which gets the same, to x and to each feature map.

        `hint`: (b, 3, H, W) in [0, 1].
        """
        time_emb = self.embed_time(timesteps, noisy_latents.dtype)
        x, skips = self.left(noisy_latents, time_emb, context, self.controlnet_cond_embedding(hint))
        return self.controlnet_mid_block(x), [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips)]


@torch.no_grad()
def copied(unet: UNet, factor: int, generator: torch.Generator) -> ControlNetwork:
    """A ControlNet that is yet to learn, float32; `factor` is that of the VAE, and at most 8."""
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
