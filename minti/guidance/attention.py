"""Attention weights, for what watches or changes them; the network itself has them fused."""

from torch import Tensor


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention maps, softmax(q kᵀ / √d): (b, heads, n, d) and (b, heads, m, d) -> (b, heads, n, m) float32."""
    return (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(dim=-1)
