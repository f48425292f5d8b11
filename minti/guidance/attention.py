"""Attention weights, for what watches or changes them; the network itself has them fused."""

from torch import Tensor


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention maps, softmax(q kᵀ / √d): (b, heads, n, d) and (b, heads, m, d) -> (b, heads, n, m) float32."""
    return (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def feature_size(positions: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a feature map with so many positions, from latents that are halved, rounding up."""
    h, w = height, width
    while h * w > positions:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != positions:
        raise ValueError(f"{positions} positions do not come from {height} x {width} latents by halving")
    return h, w
