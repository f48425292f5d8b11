"""ControlNet: a copy of the UNet's left half that also sees a hint, and tells the right half what it makes of it.

y = F(x; θ) + Z(F(x + Z(c; θ_z1); θ_c); θ_z2)        (arXiv 2302.05543, eq. 2; `003`, 18)

F is the frozen left half with its weights θ, F(·; θ_c) the copy, c the hint's features. Every Z is a zero convolution,
whose weights and bias begin as zeros: at first y = F(x; θ), whatever the hint.
The tree of submodules is the tree of keys in the file `diffusion_pytorch_model.safetensors` of a ControlNet.
"""

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.networks.unet import LeftHalf, LeftHalfConfig, UNet

WIDTHS = (16, 32, 96, 256)


@dataclass(frozen=True)
class ControlNetConfig(LeftHalfConfig):
    """The keys of a ControlNet's `config.json`: the left half's, and the channels of the hint encoder, one per size."""

    conditioning_embedding_out_channels: tuple[int, ...] = WIDTHS


class HintEncoder(nn.Module):
    """A picture to features of the latents' size, by 3 × 3 convolutions (the paper has four of 4 × 4, its code these).

    (b, 3, H, W) -> (b, channels, h, w); every size after the first halves height and width.
    """

    def __init__(self, widths: tuple[int, ...], channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        for c_in, c_out in pairwise(widths):
            self.blocks.append(nn.Conv2d(c_in, c_in, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, kernel_size=3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        features = F.silu(self.conv_in(hint))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features)


class ControlNetwork(LeftHalf):
    """The copy, the hint encoder and the zero convolutions, sized by the config."""

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        sizes = config.block_out_channels
        self.controlnet_cond_embedding = HintEncoder(config.conditioning_embedding_out_channels, sizes[0])
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, kernel_size=1) for c in self.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(sizes[-1], sizes[-1], kernel_size=1)

    @property
    def factor(self) -> int:
        """How many pixels of a hint, in either direction, make one position of the latents."""
        return 2 ** (len(self.config.conditioning_embedding_out_channels) - 1)

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """What is to be added to the UNet's feature maps.

        Args:
            noisy_latents, timesteps, context: as the UNet gets them.
            hint: (b, 3, H, W) in [0, 1], of the picture's size.

        Returns what is added to x, (b, c_last, h', w'), and to each feature map on the way to it, the finest first.
        """
        time_emb = self.embed_time(timesteps, noisy_latents.dtype)
        x = self.conv_in(noisy_latents) + self.controlnet_cond_embedding(hint)  # x + Z(c)
        x, skips = self.down(x, time_emb, context)
        return self.controlnet_mid_block(x), [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips)]

    @classmethod
    @torch.no_grad()
    def copied_from(cls, unet: UNet, widths: tuple[int, ...], generator: torch.Generator) -> "ControlNetwork":
        """A copy of the left half, float32, with a random hint encoder and all zero convolutions zero."""
        shared = {field.name: getattr(unet.config, field.name) for field in fields(LeftHalfConfig)}
        with torch.device("meta"):
            network = cls(ControlNetConfig(**shared, conditioning_embedding_out_channels=widths))
        network.to_empty(device=unet.conv_in.weight.device)
        left = {key: tensor for key, tensor in unet.state_dict().items() if key in network.state_dict()}
        network.load_state_dict(left, strict=False)
        for parameter in (parameter for name, parameter in network.named_parameters() if name not in left):
            parameter.zero_()
        encoder = network.controlnet_cond_embedding
        for conv in (encoder.conv_in, *encoder.blocks):
            bound = conv.weight[0].numel() ** -0.5  # as torch draws a convolution's
            for parameter in (conv.weight, conv.bias):
                parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))
        return network
