"""MMDiT, the transformer of Stable Diffusion 3, in one file: equal to diffusers' (`004`, 2.1 to 2.5; arXiv 2403.03206).

    python examples/mmdit.py        (seconds; a table of shapes and parameters, no weights needed)

Image patches and text tokens go through the same blocks side by side: each has its own weights, and one attention sees
both. The pooled text and the timestep, y, scale, shift and gate everything. Weights have diffusers' names. This file is
here to be read: nothing in minti loads SD 3, and nothing here is trained.
"""

from support.command_line import arguments, make_output, run

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minti.layers import TimestepEmbedding, timestep_embedding


@dataclass(frozen=True)
class MMDiTConfig:
    """Diffusers' keys; the defaults are SD 3 medium's, of which `sample_size` is that of 1024 pixels."""

    sample_size: int = 128  # of the latents: h and w
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 24
    num_attention_heads: int = 24
    attention_head_dim: int = 64
    joint_attention_dim: int = 4096  # of T5's tokens, to which CLIP's are padded
    pooled_projection_dim: int = 2048  # of the two CLIPs' pooled texts, side by side
    pos_embed_max_size: int = 192
    qk_norm: str | None = None  # "rms_norm": SD 3.5, and `004` 2.4

    @property
    def dim(self) -> int:
        """d_x, the width of both streams."""
        return self.num_attention_heads * self.attention_head_dim


def position_embedding(config: MMDiTConfig) -> Tensor:
    """e_pos of the largest grid, (1, n, d): sines and cosines of the column, then of the row (`004`, 2.2)."""
    size, quarter = config.pos_embed_max_size, config.dim // 4
    at = torch.arange(size, dtype=torch.float32) / (size / (config.sample_size // config.patch_size))
    angles = torch.outer(at.double(), 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter))
    each = torch.cat([angles.sin(), angles.cos()], dim=1)  # size d/2
    both = torch.cat([each[None].expand(size, -1, -1), each[:, None].expand(-1, size, -1)], dim=2)
    return both.flatten(0, 1)[None].float()


class PatchEmbed(nn.Module):
    """x = Patchify(z_t) W + b + e_pos: (b, c, h, w) -> (b, n, d), n = h w / p^2 (`004`, 2.2); of the positions its
    middle."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.size, self.patch = config.pos_embed_max_size, config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.dim, self.patch, self.patch)  # a linear layer on patches
        self.register_buffer("pos_embed", position_embedding(config))

    def forward(self, latents: Tensor) -> Tensor:
        h, w = (side // self.patch for side in latents.shape[-2:])
        top, left = (self.size - h) // 2, (self.size - w) // 2
        grid = rearrange(self.pos_embed, "1 (h w) d -> 1 h w d", h=self.size)
        here = grid[:, top : top + h, left : left + w].flatten(1, 2)
        return self.proj(latents).flatten(2).transpose(1, 2) + here


class Projection(nn.Module):
    """Two layers with a SiLU between: h_y of the pooled text (`004`, 2.3)."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(d_in, d_out), nn.Linear(d_out, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeAndText(nn.Module):
    """y = e_t + h_y, the pooled embedding: (b,) and (b, d_0 + d_1) -> (b, d) (`004`, 2.3)."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(256, config.dim)
        self.text_embedder = Projection(config.pooled_projection_dim, config.dim)

    def forward(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        return self.timestep_embedder(timestep_embedding(timesteps, 256).to(pooled.dtype)) + self.text_embedder(pooled)


class Modulation(nn.Module):
    """(1 + scale) LayerNorm(x) + shift, and the further parts of W SiLU(y) + b (adaLN; `004`, 2.4)."""

    def __init__(self, dim: int, parts: int):
        super().__init__()
        self.linear, self.parts = nn.Linear(dim, parts * dim), parts

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        first, second, *rest = self.linear(F.silu(y))[:, None].chunk(self.parts, dim=2)  # b 1 d each
        shift, scale = (first, second) if rest else (second, first)  # diffusers' file has both orders
        return modulated(x, scale, shift), *rest


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) LayerNorm(x) + shift: (b, n, d)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class JointAttention(nn.Module):
    """softmax([Q_x; Q_c] [K_x; K_c]^T / sqrt(d_h)) [V_x; V_c], each stream with projections of its own (`004`, 2.4).
    (b, n, d) and (b, m, d) -> the same two; `last`: the text's part is not needed any more."""

    def __init__(self, config: MMDiTConfig, last: bool):
        super().__init__()
        dim, self.heads = config.dim, config.num_attention_heads
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            self.add_module(name, nn.Linear(dim, dim))
        self.to_out, self.to_add_out = nn.ModuleList([nn.Linear(dim, dim)]), None if last else nn.Linear(dim, dim)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            rms = config.qk_norm == "rms_norm"
            self.add_module(name, nn.RMSNorm(config.attention_head_dim, eps=1e-6) if rms else nn.Identity())

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        def heads(projected: Tensor) -> Tensor:
            return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.heads)

        q = self.norm_q(heads(self.to_q(x))), self.norm_added_q(heads(self.add_q_proj(c)))
        k = self.norm_k(heads(self.to_k(x))), self.norm_added_k(heads(self.add_k_proj(c)))
        v = heads(self.to_v(x)), heads(self.add_v_proj(c))
        attended = F.scaled_dot_product_attention(*(torch.cat(pair, dim=2) for pair in (q, k, v)))
        attended = rearrange(attended, "b heads n d -> b n (heads d)")
        of_x, of_c = attended.split([x.shape[1], c.shape[1]], dim=1)
        return self.to_out[0](of_x), None if self.to_add_out is None else self.to_add_out(of_c)


class FeedForward(nn.Module):
    """W_2 GELU(W_1 x + b_1) + b_2, four times as wide inside; `004`, 2.5, has SiLU: (b, n, d) -> (b, n, d)."""

    def __init__(self, dim: int):
        super().__init__()
        first = nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim)})
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0]["proj"](x), approximate="tanh"))


class MMDiTBlock(nn.Module):
    """x <- x + gate attention;  x <- x + gate MLP(modulated x), for both streams (`004`, 2.5). (b, n, d), (b, m, d)."""

    def __init__(self, config: MMDiTConfig, last: bool):
        super().__init__()
        self.norm1, self.norm1_context = Modulation(config.dim, 6), Modulation(config.dim, 2 if last else 6)
        self.attn, self.ff = JointAttention(config, last), FeedForward(config.dim)
        self.ff_context = None if last else FeedForward(config.dim)

    def forward(self, x: Tensor, c: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        x_mod, *of_x = self.norm1(x, y)
        c_mod, *of_c = self.norm1_context(c, y)
        x_att, c_att = self.attn(x_mod, c_mod)
        x = self.update(x, x_att, self.ff, *of_x)
        return x, None if c_att is None else self.update(c, c_att, self.ff_context, *of_c)

    def update(
        self, x: Tensor, attended: Tensor, mlp: nn.Module, gate: Tensor, shift: Tensor, scale: Tensor, mlp_gate: Tensor
    ) -> Tensor:
        """The two gated residuals of a stream."""
        x = x + gate * attended
        return x + mlp_gate * mlp(modulated(x, scale, shift))


class MMDiT(nn.Module):
    """v = f(z_t, t, c, y): latents (b, c, h, w), timesteps (b,), text (b, m, d_T), pooled text (b, d_0 + d_1) -> as the
    latents."""

    def __init__(self, config: MMDiTConfig = MMDiTConfig()):
        super().__init__()
        self.config, count = config, config.num_layers
        self.pos_embed, self.time_text_embed = PatchEmbed(config), TimeAndText(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.dim)
        self.transformer_blocks = nn.ModuleList(MMDiTBlock(config, last=i == count - 1) for i in range(count))
        self.norm_out = Modulation(config.dim, 2)
        self.proj_out = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        x, c, y = self.pos_embed(latents), self.context_embedder(text), self.time_text_embed(timesteps, pooled)
        for block in self.transformer_blocks:
            x, c = block(x, c, y)
        patches = self.proj_out(self.norm_out(x, y)[0])  # b n (p p c)
        p, h = self.config.patch_size, latents.shape[2] // self.config.patch_size
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)


def main() -> None:
    """Shapes of SD 3 medium's parts, and how many parameters they have; nothing is computed."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/mmdit")
    make_output(parser.parse_args().output)
    with torch.device("meta"):
        model, size = MMDiT(), MMDiTConfig()
        latents = torch.empty(2, size.in_channels, size.sample_size, size.sample_size)
        inputs = latents, torch.empty(2), torch.empty(2, 77 + 256, size.joint_attention_dim), torch.empty(2, 2048)
        print("| part | output | parameters, million |\n|---|---|---|")
        for name, part in [*model.named_children(), ("transformer_blocks.0", model.transformer_blocks[0]), ("", model)]:

            def tell(part: nn.Module, _: object, output: Tensor | tuple[Tensor, ...], name: str = name) -> None:
                shapes = [
                    tuple(one.shape) for one in (output if isinstance(output, tuple) else (output,)) if one is not None
                ]
                count = sum(parameter.numel() for parameter in part.parameters()) / 1e6
                print(f"| {name or 'all'} | {', '.join(map(str, shapes))} | {count:,.1f} |")

            part.register_forward_hook(tell)
        model(*inputs)


if __name__ == "__main__":
    run(main)
