"""Winograd's minimal filtering: 3 × 3 convolutions with fewer products (Lavin and Gray, arXiv 1509.09308, section 4).
F(m × m, 3 × 3) gives m × m outputs of a tile d of n × n inputs, n = m + 2, from n² products in place of 9 m²:

    Y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A                                                                 (eq. 8)

Summed over the channels, the n² entries are n² matrix products, of all tiles by the transformed weights."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.model import StableDiffusion
from minti.speed.packed import LEAST, Frozen, Prepared, pack, product, replaced

# The polynomials' interpolation points, beside infinity. 0, ±1, ±2 of the paper round twice as much.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
CHUNK = 2**24  # bytes of transformed tiles at a time, which a cache can hold
WHICH = (3, 3), (1, 1), (1, 1)  # kernel size, stride and padding


@cache
def matrices(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bᵀ (n, n), G (n, 3) and Aᵀ (m, n) of F(m, 3) in float64, by Toom and Cook's interpolation (`POINTS`)."""
    points = np.array(POINTS[m])
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(point - rest) for point, rest in zip(points, others)]
    end = lambda length: np.eye(length)[-1:]  # noqa: E731  # the point infinity: the highest coefficient
    B = [np.append(np.poly(rest)[::-1], 0) for rest in others] + [np.poly(points)[::-1]]
    G = np.concatenate([np.vander(points, 3, increasing=True) / np.array(scale)[:, None], end(3)])
    A = np.concatenate([np.vander(points, m, increasing=True), end(m)])
    return torch.tensor(np.array(B)), torch.tensor(G), torch.tensor(A.T)


def transformed(weight: Tensor, m: int) -> list[Tensor]:
    """G g Gᵀ, transposed, of every filter: (c_out, c_in, 3, 3) -> n² of (c_out, c_in), packed."""
    _, G, _ = matrices(m)
    taps = weight.double().permute(3, 2, 0, 1).flatten(2).flatten(0, 1)  # 9 (c_out c_in)
    return [pack(part.view(weight.shape[:2])) for part in (torch.kron(G, G) @ taps).to(weight.dtype)]


def convolve(x: Tensor, weights: list[Tensor], m: int, bias: Tensor | None = None) -> Tensor:
    """The convolution with padding 1 and the weights of `transformed`: (b, c_in, h, w) -> (b, c_out, h, w), in torch's
    memory format channels_last; so many rows of tiles at a time as a cache can hold."""
    (b, c, h, w), n, c_out = x.shape, m + 2, weights[0].shape[0]
    B, A = (matrix.to(x.dtype) for matrix in matrices(m)[::2])
    down, across = -(-h // m), -(-w // m)  # tiles
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, across * m + 1 - w, 1, down * m + 1 - h))  # b H W c
    out = x.new_empty(b, down * m, across * m, c_out)
    rows = max(1, CHUNK // (n * n * (c + c_out) * b * across * x.element_size()))
    sb, sh, sw, sc = padded.stride()
    for top in range(0, down, rows):
        k = min(rows, down - top)
        tiles = padded.as_strided((n, n, b, k, across, c), (sh, sw, sb, m * sh, m * sw, sc), top * m * sh)
        d = tiles.reshape(n, n, -1)
        d = (B @ (B @ d).transpose(0, 1)).view(n * n, -1, c)  # Bᵀ d B, transposed: n² tiles c
        y = torch.stack([product(*pair) for pair in zip(d, weights)]).view(n, n, -1)
        y = (A @ (A @ y).transpose(0, 1)).view(m, m, b, k, across, c_out)
        rows_of_out = out[:, top * m : (top + k) * m].view(b, k, m, across, m, c_out)
        rows_of_out.copy_(y.permute(2, 3, 0, 4, 1, 5))
    out = out[:, :h, :w] if bias is None else out[:, :h, :w] + bias
    return out.permute(0, 3, 1, 2)


def tile(c_out: int, c_in: int, h: int, w: int) -> int:
    """The m with which a convolution is fast; 0: it is faster directly. Measured, on AVX-512 and AVX2. Below 32 × 32,
    m = 4 is hardly faster than 2, and its weights take 4 times the memory of the filters, those of 2 16/9 times."""
    return 0 if c_out * c_in < LEAST else 4 if h * w >= 1024 else 2


class ConvolutionForward(Prepared):
    """The forward pass of a 3 × 3 convolution, (b, c_in, h, w) -> (b, c_out, h, w). Backward it is the convolution of
    the gradient with the filters turned by half a turn, and inputs and outputs exchanged."""

    def __init__(self, layer: nn.Conv2d, tile: Callable[[int, int, int, int], int]):
        super().__init__(layer)
        self.tile = tile

    def __call__(self, x: Tensor) -> Tensor:
        m = self.tile(*self.layer.weight.shape[:2], *x.shape[2:]) if self.fits(x) else 0
        if m == 0:
            return self.direct(x)
        return Frozen.apply(x, partial(self.forward, m), partial(self.backward, m))

    def forward(self, m: int, x: Tensor) -> Tensor:
        return convolve(x, self.made("forward", transformed, m), m, self.layer.bias)

    def backward(self, m: int, gradient: Tensor) -> Tensor:
        """The gradient of x."""
        turned = lambda weight, m: transformed(weight.flip(2, 3).transpose(0, 1), m)  # noqa: E731
        return convolve(gradient, self.made("backward", turned, m), m)


class Winograd(Adapter):
    """Computes the 3 × 3 convolutions of UNet and VAE by Winograd's algorithm, where that is faster, and their gradient
    as well. Not to the same bits: beside torch's own, the rounding error is some four times as large for m = 4.

    The transformed weights are kept beside the model's: of SD v1.4's UNet 4.4 GB, and as much again where a gradient
    flows. Trainable layers, and other numbers than float32 on a CPU, are left as they are.

    tile: (c_out, c_in, h, w) -> m, 2 or 4, or 0: directly."""

    name = "Winograd"

    def __init__(self, tile: Callable[[int, int, int, int], int] = tile):
        super().__init__()
        self.tile = tile

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces the layers' `forward`."""
        for layer in (*model.unet.modules(), *model.vae.modules()):
            if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == WHICH:
                yield replaced(layer, ConvolutionForward(layer, self.tile))
