"""bfloat16 on a CPU: attention over many positions, and convolutions over few, as matrix products. torch's fused
attention reaches a sixth of their rate there, and its convolutions reorder their weights at every call."""

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from minti.layers import Attention

QUERIES = 1024  # at a time: their weights over 4,096 keys take 8 MiB, which a cache can hold


def accelerate(*networks: nn.Module) -> None:
    """Makes a network use the faster products for attention and 3 × 3 convolutions, where they are faster."""
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, Attention):
            module.attend = attention
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.out_channels >= 1024:
            module.forward = MethodType(convolution, module)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v: (b, heads, n, d), (b, heads, m, d) and (b, heads, m, d) -> (b, heads, n, d)."""
    if k.shape[2] >= 1024 and _on_cpu_in_bfloat16(q):
        return attention_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 × 3 convolution: (b, c_in, h, w) -> (b, c_out, h', w')."""
    if x.shape[0] * x.shape[2] * x.shape[3] <= conv.out_channels and _on_cpu_in_bfloat16(conv.weight):
        return convolution_product(conv, x)
    return nn.Conv2d.forward(conv, x)


def _on_cpu_in_bfloat16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d): (n, d) and (m, d) -> (n, m), computed in place.

    bfloat16 has eight significant bits: a score of 20 is off by up to 0.06, and its weight by 6 %. The largest score of
    a query, estimated from some keys, is subtracted before rounding: softmax is the same, and more precise."""
    scale = q.shape[-1] ** -0.5
    sample = k[:: max(1, len(k) // 256)]
    largest = (q @ sample.T).amax(dim=-1, keepdim=True)
    scores = torch.addmm(-scale * largest, q, k.T, alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


class AttentionProducts(torch.autograd.Function):
    """softmax(q kᵀ / √d) v of one head, (n, d), (m, d), (m, d) -> (n, d); the backward pass computes the weights again
    ("FlashAttention", arXiv 2205.14135, appendix B.2): with P = softmax(S), S = q kᵀ / √d and o = P v,

        dv = Pᵀ do,   dS = P ∘ (do vᵀ - rowsum(do ∘ o)),   dq = dS k / √d,   dk = dSᵀ q / √d
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention_weights(q, k) @ v
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v; the weights are computed anew."""
        q, k, v, out = ctx.saved_tensors
        weights = attention_weights(q, k)
        d_scores = torch.addmm(-(d_out * out).sum(dim=-1, keepdim=True), d_out, v.T).mul_(weights)
        scale = q.shape[-1] ** -0.5
        # (a.T @ b).T instead of b.T @ a: the product's long side is then the rows' and it is a third faster.
        return d_scores @ k * scale, (q.T @ d_scores).T * scale, (d_out.T @ weights).T


def attention_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention`, one head and QUERIES queries at a time."""
    attended = [
        AttentionProducts.apply(queries, k_head, v_head)
        for q_image, k_image, v_image in zip(q, k, v)
        for q_head, k_head, v_head in zip(q_image, k_image, v_image)
        for queries in q_head.split(QUERIES)
    ]
    return torch.cat(attended).view(q.shape)


def convolution_product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 × 3 convolution as one product: (b h w, 9 c_in) neighbourhoods by the (c_out, 9 c_in) weights."""
    (p, _), (stride, _) = conv.padding, conv.stride
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, p, p, p, p))  # b c h w -> b h+2p w+2p c
    h, w = padded.shape[1] - 2, padded.shape[2] - 2
    shifted = [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    product = F.linear(torch.stack(shifted, dim=-1).flatten(3), conv.weight.flatten(1), conv.bias)
    return product.permute(0, 3, 1, 2).contiguous()  # b h w c -> b c h w
