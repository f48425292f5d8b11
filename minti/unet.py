"""The UNet that predicts the noise, with cross-attention to the prompt (latent diffusion, arXiv 2112.10752; `002`, 5.3,
7.2 and 17; `003`, 5). The tree of submodules is the tree of keys in `unet/diffusion_pytorch_model.safetensors`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minti.layers import Downsample, ResnetBlock, SpatialTransformer, TimestepEmbedding, Upsample, timestep_embedding


@dataclass(frozen=True)
class UNetConfig:
    """The keys of `unet/config.json` that size the network; the defaults are SD v1.4's."""

    sample_size: int = 64  # the latents' height and width in training
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    cross_attention_dim: int = 768
    attention_head_dim: int = 8  # the *number* of heads: the release named it wrongly, and the name stuck
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0


class EncoderHalf(nn.Module):
    """The encoder half of the UNet, from the latents to the bottom; a ControlNet copies it."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        sizes = config.block_out_channels
        last, layers = len(sizes) - 1, config.layers_per_block

        self.conv_in = nn.Conv2d(config.in_channels, sizes[0], kernel_size=3, padding=1)
        self.time_embedding = TimestepEmbedding(sizes[0], 4 * sizes[0])

        self.down_blocks = nn.ModuleList()
        self.skip_channels = [sizes[0]]  # channels of every skip connection
        for level, (kind, c_out) in enumerate(zip(config.down_block_types, sizes)):
            channels = [(self.skip_channels[-1], c_out)] + [(c_out, c_out)] * (layers - 1)
            self.down_blocks.append(DownBlock(channels, config, kind.startswith("CrossAttn"), level < last))
            self.skip_channels += [c_out] * (layers + (level < last))

        self.mid_block = MidBlock(sizes[-1], config)

    def gradient_checkpointing(self, on: bool) -> None:
        """Gradient checkpointing: each layer is computed a second time in the backward pass, to save memory."""
        for block in (*self.down_blocks, self.mid_block, *getattr(self, "up_blocks", ())):
            block.checkpointing = on

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The timesteps as every resnet block receives them: (b,) -> (b, 4 c_0)."""
        c = self.config
        features = timestep_embedding(timesteps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
        return self.time_embedding(features.to(dtype))

    def left(
        self, noisy_latents: Tensor, time_emb: Tensor, context: Tensor, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the encoder half, the left of the U: x, (b, c_last, h', w'), and the skips. A ControlNet adds `hint`."""
        x = self.conv_in(noisy_latents) if hint is None else self.conv_in(noisy_latents) + hint
        skips = [x]
        for block in self.down_blocks:
            x, kept = block(x, time_emb, context)
            skips += kept
        return self.mid_block(x, time_emb, context), skips


class UNet(EncoderHalf):
    """Stable Diffusion's denoiser, sized by its config."""

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """`forward`; hooks find its inputs in this order, even if they were given by keyword."""
        return super().__call__(noisy_latents, timesteps, context)

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        sizes, skip_channels = config.block_out_channels, list(self.skip_channels)
        self.up_blocks = nn.ModuleList()
        c_in = sizes[-1]
        for level, (kind, c_out) in enumerate(zip(config.up_block_types, reversed(sizes))):
            channels = []
            for _ in range(config.layers_per_block + 1):
                channels.append((c_in + skip_channels.pop(), c_out))
                c_in = c_out
            self.up_blocks.append(UpBlock(channels, config, kind.startswith("CrossAttn"), level < len(sizes) - 1))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, sizes[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(sizes[0], config.out_channels, kernel_size=3, padding=1)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predicts the noise, or what the scheduler's `prediction_type` says: (b, c, h, w), (b,) and the encoded
        prompts, (b, m, d) -> (b, c, h, w).

        SD v1.4 at 512 x 512, channels and size of x after each block, with attention to the prompt's (b, 77, 768):

            conv_in                320 x 64 x 64
            down_blocks  0, 1, 2   320 x 32 x 32   640 x 16 x 16   1280 x 8 x 8    with the prompt, then halved
                         3        1280 x 8 x 8                                     without either
            mid_block             1280 x 8 x 8                                     with the prompt
            up_blocks    0        1280 x 16 x 16                                   without the prompt, doubled
                         1, 2, 3  1280 x 32 x 32   640 x 64 x 64   320 x 64 x 64   with it; the last is not doubled
            conv_out                 4 x 64 x 64
        """
        time_emb = self.embed_time(timesteps, noisy_latents.dtype)
        x, skips = self.left(noisy_latents, time_emb, context)
        return self.right(x, skips, time_emb, context)

    def right(self, x: Tensor, skips: list[Tensor], time_emb: Tensor, context: Tensor) -> Tensor:
        """Runs the decoder half, the right side of the U, from what `left` gives to the prediction, (b, c, h, w)."""
        skips = list(skips)
        for block in self.up_blocks:
            x = block(x, skips, time_emb, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class UNetBlock(nn.Module):
    """Resnet blocks, each followed by cross-attention where this level has any; x is (b, c, h, w)."""

    checkpointing = False

    def __init__(self, channels: list[tuple[int, int]], config: UNetConfig, attends: bool):
        """channels: (in, out) of each resnet in turn."""
        super().__init__()
        groups, heads, width = config.norm_num_groups, config.attention_head_dim, config.cross_attention_dim
        sizes = groups, config.norm_eps, 4 * config.block_out_channels[0]
        transformers = (SpatialTransformer(c_out, heads, width, groups) for _, c_out in channels)
        self.attentions = nn.ModuleList(transformers) if attends else [None] * len(channels)
        self.resnets = nn.ModuleList(ResnetBlock(c_in, c_out, *sizes) for c_in, c_out in channels)

    def run(self, layer: nn.Module | None, x: Tensor, condition: Tensor) -> Tensor:
        """A resnet with the time embedding, or an attention with the context, if there is one."""
        if layer is None:
            return x
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x, condition, use_reentrant=False)
        return layer(x, condition)


class DownBlock(UNetBlock):
    """Encoder half: keeps every feature map as a skip connection, then halves height and width."""

    def __init__(self, channels: list[tuple[int, int]], config: UNetConfig, attends: bool, downsample: bool):
        super().__init__(channels, config, attends)
        self.downsamplers = nn.ModuleList([Downsample(channels[-1][1])] if downsample else [])

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions):
            x = self.run(resnet, x, time_emb)
            x = self.run(attention, x, context)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)  # b c h w -> b c h/2 w/2
            skips.append(x)
        return x, skips


class MidBlock(UNetBlock):
    """The bottom: resnet, attention, resnet."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__([(channels, channels)], config, attends=True)
        groups, time_embed_dim = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets.append(ResnetBlock(channels, channels, groups, config.norm_eps, time_embed_dim))

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> Tensor:
        x = self.run(self.resnets[0], x, time_emb)
        x = self.run(self.attentions[0], x, context)
        return self.run(self.resnets[1], x, time_emb)


class UpBlock(UNetBlock):
    """Decoder half: each resnet also sees the skip connection of this size."""

    def __init__(self, channels: list[tuple[int, int]], config: UNetConfig, attends: bool, upsample: bool):
        super().__init__(channels, config, attends)
        self.upsamplers = nn.ModuleList([Upsample(channels[-1][1])] if upsample else [])

    def forward(self, x: Tensor, skips: list[Tensor], time_emb: Tensor, context: Tensor) -> Tensor:
        """Takes its skip connections off the end of `skips`."""
        for resnet, attention in zip(self.resnets, self.attentions):
            x = self.run(resnet, torch.cat([x, skips.pop()], dim=1), time_emb)  # b (c + c_skip) h w -> b c_out h w
            x = self.run(attention, x, context)
        for upsampler in self.upsamplers:
            # Where an odd size was halved, the next skip connection says which size to return to.
            x = upsampler(x, size=skips[-1].shape[-2:])
        return x
