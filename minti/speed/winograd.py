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
from minti.speed.packed import Frozen, Prepared, pack, product, replaced

# The polynomials' interpolation points, beside infinity. 0, ±1, ±2 of the paper round twice as much.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
CHUNK = 2**24  # bytes of transformed tiles at a time, which a cache can hold


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
    sb, sh, sw, _ = padded.stride()
    for top in range(0, down, rows):
        k = min(rows, down - top)
        tiles = padded.as_strided((n, n, b, k, across, c), (sh, sw, sb, m * sh, m * sw, 1), top * m * sh)
        d = tiles.reshape(n, n, -1)
        d = (B @ (B @ d).transpose(0, 1)).view(n * n, -1, c)  # Bᵀ d B, transposed: n² tiles c
        y = torch.stack([product(*pair) for pair in zip(d, weights)]).view(n, n, -1)
        y = (A @ (A @ y).transpose(0, 1)).view(m, m, b, k, across, c_out)
        rows_of_out = out[:, top * m : (top + k) * m].view(b, k, m, across, m, c_out)
        rows_of_out.copy_(y.permute(2, 3, 0, 4, 1, 5))
    out = out[:, :h, :w] if bias is None else out[:, :h, :w] + bias
    return out.permute(0, 3, 1, 2)


def tile(c_in: int, c_out: int, h: int, w: int) -> int:
    """The m with which a convolution is fastest; 0: directly. Measured."""
    if min(c_in, c_out) < 64 or c_in * c_out < 2**14:
        return 0
    return 4 if h * w >= 1024 else 2


class ConvolutionForward(Prepared):
    """The forward pass of a 3 × 3 convolution, (b, c_in, h, w) -> (b, c_out, h, w). Backward it is the convolution of
    the gradient with the filters turned by half a turn, and inputs and outputs exchanged."""

    def __call__(self, x: Tensor) -> Tensor:
        m = tile(*self.layer.weight.shape[:2], *x.shape[2:]) if self.fits(x) and x.ndim == 4 else 0
        if m == 0:
            return self.direct(x)
        return Frozen.apply(x, partial(self.forward, m), partial(self.backward, m))

    def forward(self, m: int, x: Tensor) -> Tensor:
        return convolve(x, self.made("forward", lambda weight: transformed(weight, m)), m, self.layer.bias)

    def backward(self, m: int, gradient: Tensor) -> Tensor:
        """The gradient of x."""
        turned = lambda weight: transformed(weight.flip(2, 3).transpose(0, 1), m)  # noqa: E731
        return convolve(gradient, self.made("backward", turned), m)


class Winograd(Adapter):
    """Computes the UNet's and the VAE's 3 × 3 convolutions by Winograd's algorithm."""

    name = "Winograd"

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces the layers' `forward`."""
        for layer in (*model.unet.modules(), *model.vae.modules()):
            if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == (
                (3, 3),
                (1, 1),
                (1, 1),
            ):
                yield replaced(layer, ConvolutionForward(layer))
