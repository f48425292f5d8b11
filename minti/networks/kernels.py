"""bfloat16 on a CPU: attention over many positions, and convolutions of few, as plain matrix products.

torch's fused attention reaches a sixth of the rate of matrix products here. Its convolutions bring their weights into
another order at every call, which takes longer than the convolution itself where a feature map has few positions.
Everywhere else (float32, float16, other devices, other sizes) `layers.py` uses torch's own kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

ROWS = 1024  # queries at a time: their weights over 4,096 keys take 8 MiB, which a cache can hold


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d): (rows, d) and (keys, d) -> (rows, keys).

    bfloat16 has eight significant bits: a score of 20 is off by up to 0.06, its weight by 6 %. But softmax stays the
    same when all scores of a query are shifted. Shifted before rounding by the largest, those that matter are small
    and precise; a sample of the keys tells it well enough.
    """
    scale = q.shape[-1] ** -0.5
    sample = k[:: max(1, len(k) // 256)]
    largest = (q @ sample.T).amax(dim=-1, keepdim=True)
    scores = torch.addmm(-scale * largest, q, k.T, alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


class AttentionProducts(torch.autograd.Function):
    """softmax(q kᵀ / √d) v for (rows, d) queries; the weights are computed again for the gradient.

    With P = softmax(S), S = q kᵀ / √d and o = P v, the gradient do of the result becomes
        dv = Pᵀ do,   dS = P ∘ (do vᵀ - rowsum(do ∘ o)),   dq = dS k / √d,   dk = dSᵀ q / √d
    ("FlashAttention", arXiv 2205.14135, appendix B.2).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result o, (rows, d)."""
        out = attention_weights(q, k) @ v
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients dq, dk and dv."""
        q, k, v, out = ctx.saved_tensors
        weights = attention_weights(q, k)
        d_scores = torch.addmm(-(d_out * out).sum(dim=-1, keepdim=True), d_out, v.T).mul_(weights)
        scale = q.shape[-1] ** -0.5
        # (a.T @ b).T instead of b.T @ a: the product's long side is then its rows' and it is a third faster.
        return d_scores @ k * scale, (q.T @ d_scores).T * scale, (d_out.T @ weights).T


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v, (b, heads, n, d): one head and ROWS queries at a time."""
    attended = [
        AttentionProducts.apply(rows, k_head, v_head)
        for q_picture, k_picture, v_picture in zip(q, k, v)
        for q_head, k_head, v_head in zip(q_picture, k_picture, v_picture)
        for rows in q_head.split(ROWS)
    ]
    return torch.cat(attended).view(q.shape)


def convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3 × 3 convolution as one product: (b h w, 9 c_in) neighbourhoods by (9 c_in, c_out) weights."""
    if not conv.weight.is_contiguous(memory_format=torch.channels_last):
        # Once, the first time: the order (c_out, 3, 3, c_in), of which the product takes a view.
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    (p, _), (stride, _) = conv.padding, conv.stride
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, p, p, p, p))  # b c h w -> b h+2p w+2p c
    h, w = padded.shape[1] - 2, padded.shape[2] - 2
    shifted = [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    product = F.linear(torch.cat(shifted, dim=-1), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return product.permute(0, 3, 1, 2).contiguous()  # b h w c -> b c h w
