"""The layers of UNet and VAE: resnet blocks, attention, the timestep embedding (lecture notes `002`, 1.3, 1.4 and 7.4;
questions `003`, 12 and 13; slides `004`, 2.3). Submodules carry the names of the SD v1.4 checkpoint.

Shapes: `b` batch, `c` channels, `h w` height and width, `n` positions of the feature map, `m` tokens of the prompt (77
in SD v1.4), `d` features.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minti.utils import check


def timestep_embedding(timesteps: Tensor, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sinusoidal features of the timestep, the position encoding of Transformers ("Attention Is All You Need", 3.5).

        omega_i = 10000^(-i / (dim/2 - freq_shift)),   (cos(t omega_i), sin(t omega_i)),   i = 0 .. dim/2 - 1

    (b,) -> (b, dim) float32. `flip_sin_to_cos`: cosines first, as in Stable Diffusion; otherwise sines first.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(exponent / (half - freq_shift))
    angles = timesteps[:, None].float() * frequencies[None, :]  # b, dim/2
    sin, cos = torch.sin(angles), torch.cos(angles)
    return torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=-1)


class TimestepEmbedding(nn.Module):
    """From sinusoidal features to the vector that every resnet block gets: (b, in_channels) -> (b, time_embed_dim)."""

    def __init__(self, in_channels: int, time_embed_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class ResnetBlock(nn.Module):
    """norm, SiLU, convolution, twice; the timestep enters between the two (not in the VAE); a shortcut goes round.
    (b, c_in, h, w) and the timestep's (b, time_embed_dim) -> (b, c_out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, time_embed_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        if time_embed_dim is not None:
            self.time_emb_proj = nn.Linear(time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        hidden = checkpointed(lambda x: self.conv1(F.silu(self.norm1(x))), x)  # b c_in h w -> b c_out h w
        if time_emb is not None:
            hidden = hidden + self.time_emb_proj(F.silu(time_emb))[:, :, None, None]
        hidden = checkpointed(lambda hidden: self.conv2(F.silu(self.norm2(hidden))), hidden)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + hidden


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient checkpointing of function(x), if x is large: only x is kept; backward, the rest is computed again."""
    if not torch.is_grad_enabled() or x.numel() < 2**18:
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v of (b, heads, n or m, d) -> (b, heads, n, d)


class Attention(nn.Module):
    """Attention, softmax(q kᵀ / √d) v over several heads ("Attention Is All You Need", eq. 1): queries from x, (b, n,
    query_dim), keys and values from `context`, (b, m, context_dim), or from x: self-attention. -> (b, n, query_dim).

    attend: how it is computed; `minti.speed` gives a layer a faster one. around: wrappers f(attend, q, k, v) that
    watch or change attention, the last one outermost. after: functions f(q, attended) of its result, in turn."""

    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, query_dim: int, heads: int, context_dim: int | None = None, qkv_bias: bool = False):
        super().__init__()
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        check("runs.checks:heads", query_dim, heads)
        self.to_q = nn.Linear(query_dim, query_dim, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim, query_dim, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim, query_dim, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(query_dim, query_dim)])  # a list because the checkpoint says to_out.0
        self.around: list[Callable[[Attend, Tensor, Tensor, Tensor], Tensor]] = []
        self.after: list[Callable[[Tensor, Tensor], Tensor]] = []

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k = rearrange(self.to_k(context), "b m (heads d) -> b heads m d", heads=self.heads)
        v = rearrange(self.to_v(context), "b m (heads d) -> b heads m d", heads=self.heads)
        attend = self.attend
        for further in self.around:
            attend = partial(further, attend)
        attended = attend(q, k, v)  # b heads n d
        for further in self.after:
            attended = further(q, attended)
        return self.to_out[0](rearrange(attended, "b heads n d -> b n (heads d)"))


class SpatialAttention(Attention):
    """One-headed self-attention over the positions of a feature map, the middle of the VAE: (b, c, h, w) -> same."""

    def __init__(self, channels: int, groups: int, eps: float):
        super().__init__(channels, heads=1, qkv_bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)  # b c h w -> b (h w) c, a view: no copy
        attended = super().forward(tokens)
        # Not einops: for a batch of one its result has other strides, and what follows would round otherwise.
        return attended.transpose(1, 2).reshape(x.shape) + x  # b (h w) c -> b c h w


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate: value * gelu(gate) ("GLU Variants Improve Transformer", eq. 6)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        def product(projected: Tensor) -> Tensor:
            value, gate = projected.chunk(2, dim=-1)
            return value * F.gelu(gate)

        return checkpointed(product, self.proj(x))  # b n d_in -> b n (2 d_out) -> b n d_out


class TransformerBlock(nn.Module):
    """Self-attention among the positions, cross-attention to the prompt, feed-forward layers four times as wide
    inside; each is added to its input. (b, n, d) and the context's (b, m, context_dim) -> (b, n, d)."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))  # net.1 was a dropout
        self.ff = nn.ModuleDict({"net": net})

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff["net"](self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Cross-attention to the prompt (latent diffusion, arXiv 2112.10752, 3.3): every position of the feature map
    attends to the words. (b, c, h, w) and the context's (b, m, context_dim) -> (b, c, h, w)."""

    def __init__(self, channels: int, heads: int, context_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, kernel_size=1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        hidden = checkpointed(lambda x: self.proj_in(self.norm(x)), x)
        tokens = rearrange(hidden, "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        # contiguous: a permuted view would send the convolutions that follow down another kernel, with other rounding.
        hidden = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]).contiguous()
        return self.proj_out(hidden) + x


class Downsample(nn.Module):
    """Halves height and width with a convolution of stride 2; the VAE pads on the right and at the bottom only."""

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Doubles height and width (or meets `size`, where halving rounded up): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        scale = {"scale_factor": 2.0} if size is None else {"size": size}
        return self.conv(F.interpolate(x, mode="nearest", **scale))
