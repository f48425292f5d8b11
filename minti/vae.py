"""The variational autoencoder (VAE): images to latents and back, so that diffusion happens on a grid 64 times smaller
(arXiv 2112.10752, 3.1; arXiv 1312.6114; `002`, 7.1 and 7.2; `003`, 8). Submodules are named as in the checkpoint."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.layers import Downsample, ResnetBlock, SpatialAttention, Upsample
from minti.utils import Generators, randn

EPS = 1e-6  # of every norm in the VAE; the config does not say


@dataclass(frozen=True)
class VAEConfig:
    """The keys of `vae/config.json` that size the network; the defaults are SD v1.4's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # makes the latents' standard deviation about one

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide (8 in SD v1.4)."""
        return 2 ** (len(self.block_out_channels) - 1)


class VAE(nn.Module):
    """Stable Diffusion's autoencoder, sized by its config; its latents are *unscaled* (`StableDiffusion.scale`)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(c, c, kernel_size=1)

    def encode(self, pixels: Tensor) -> "DiagonalGaussian":
        """Images, (b, 3, H, W) in [-1, 1], to distributions over latents. Raises ValueError: the size does not fit."""
        height, width = pixels.shape[-2:]
        if height % self.config.factor or width % self.config.factor:
            raise ValueError(f"the VAE takes sizes that are multiples of {self.config.factor}; got {height} x {width}")
        return DiagonalGaussian.from_moments(self.quant_conv(self.encoder(pixels)))

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (b, c, h, w) to images (b, 3, H, W), about [-1, 1] but not clamped."""
        return self.decoder(self.post_quant_conv(latents))


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's output, a normal distribution for every latent number: mean and log-variance, (b, c, h, w) each."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """Splits (b, 2 c, h, w) into mean and log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """Standard deviation, (b, c, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """One draw, (b, c, h, w): mean + std * noise."""
        return self.mean + self.std * randn(self.mean.shape, generator, self.mean.device, self.mean.dtype)


class Encoder(nn.Module):
    """Pixels to moments: (b, 3, H, W) -> (b, 2 c, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        sizes, groups, layers = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, sizes[0], kernel_size=3, padding=1)
        levels = enumerate(zip((sizes[0], *sizes), sizes))
        blocks = (VAEBlock(*io, layers, groups, down=level < len(sizes) - 1) for level, io in levels)
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = VAEMidBlock(sizes[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, sizes[-1], eps=EPS)
        self.conv_out = nn.Conv2d(sizes[-1], 2 * config.latent_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)  # b c h w -> b c_out h/2 w/2
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels: (b, c, h, w) -> (b, 3, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        sizes, groups, layers = config.block_out_channels[::-1], config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.latent_channels, sizes[0], kernel_size=3, padding=1)
        self.mid_block = VAEMidBlock(sizes[0], groups)
        levels = enumerate(zip((sizes[0], *sizes), sizes))
        blocks = (VAEBlock(*io, layers + 1, groups, up=level < len(sizes) - 1) for level, io in levels)
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_norm_out = nn.GroupNorm(groups, sizes[-1], eps=EPS)
        self.conv_out = nn.Conv2d(sizes[-1], config.out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)  # b c h w -> b c_out 2h 2w
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAEBlock(nn.Module):
    """Resnets at one size, then a change of size, if any: (b, c_in, h, w) -> (b, c_out, h', w')."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, down: bool = False, up: bool = False):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c, c_out, groups, EPS) for c in (c_in, *[c_out] * (layers - 1)))
        self.downsamplers = nn.ModuleList([Downsample(c_out, asymmetric=True)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class VAEMidBlock(nn.Module):
    """Resnet, self-attention over all positions, resnet: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups, EPS)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))
