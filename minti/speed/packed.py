"""Matrix products with frozen weights in oneDNN's own layout. torch computes float32's by MKL, which reaches less than
half of the rate of an AMD processor with AVX-512, and oneDNN nearly all of it, once the weights are packed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from minti.adapter import Adapter
from minti.model import StableDiffusion

Map = Callable[[Tensor], Tensor]
LEAST = 2**16  # weights of a layer, below which packing does not pay


def pack(weight: Tensor) -> Tensor:
    """The weight of a `product`, (d_out, d_in), in float32 on a CPU packed; others as they are."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 256)  # rows of x, which do not matter


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias: (..., d_in) -> (..., d_out); `weight` is what `pack` gave."""
    if not weight.is_mkldnn:
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Frozen(torch.autograd.Function):
    """An affine map f with frozen weights, backward its adjoint."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: Map, adjoint: Map) -> Tensor:
        ctx.adjoint = adjoint
        return f(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        return ctx.adjoint(gradient), None, None


class Prepared:
    """A layer's weights as a faster `forward` uses them, made at its first call, and again when they change."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        self.layer, self.direct = layer, layer.forward
        self._made: dict[str, tuple[Tensor, tuple, Any]] = {}

    def fits(self, x: Tensor) -> bool:
        """Whether the layer is frozen, and it and x are in float32 on a CPU."""
        frozen = not any(weight.requires_grad for weight in self.layer.parameters())
        return frozen and x.dtype == self.layer.weight.dtype == torch.float32 and x.device.type == "cpu"

    def made(self, name: str, make: Callable[..., Any], *options: Any) -> Any:
        """make(weight, *options), kept under its name for as long as weight and options stay the same."""
        weight = self.layer.weight.detach()
        state = weight.data_ptr(), self.layer.weight._version, *options
        if name not in self._made or self._made[name][1] != state:
            # The weight is held, so that no other comes to lie where it lies.
            self._made[name] = weight, state, make(weight, *options)
        return self._made[name][2]


class LinearForward(Prepared):
    """The forward pass of a linear layer, (..., d_in) -> (..., d_out), or of a 1 × 1 convolution, (b, c_in, h, w) ->
    (b, c_out, h, w)."""

    def __call__(self, x: Tensor) -> Tensor:
        if not self.fits(x):
            return self.direct(x)
        if x.ndim == 4 and isinstance(self.layer, nn.Conv2d):
            return Frozen.apply(x.permute(0, 2, 3, 1), self.forward, self.backward).permute(0, 3, 1, 2)
        return Frozen.apply(x, self.forward, self.backward)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.made("forward", lambda weight: pack(weight.flatten(1))), self.layer.bias)

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of x: the product with the weight transposed."""
        return product(gradient, self.made("backward", lambda weight: pack(weight.flatten(1).T)))


def replaced(layer: nn.Module, forward: Map) -> Callable[[], None]:
    """Replaces a layer's forward pass; returns what puts the former one back."""
    former = vars(layer).get("forward")
    layer.forward = forward
    return partial(setattr, layer, "forward", former) if former else partial(delattr, layer, "forward")


class Packed(Adapter):
    """Packs the weights of linear layers and 1 × 1 convolutions of UNet and VAE; those take their memory once more, and
    twice where a gradient flows through them. Trainable layers, and other numbers than float32 on a CPU, are left as
    they are.

    least: the number of a layer's weights below which it is left as it is."""

    name = "Packed"

    def __init__(self, least: int = LEAST):
        super().__init__()
        self.least = least

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces the layers' `forward`."""
        for layer in (*model.unet.modules(), *model.vae.modules()):
            linear = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
            if linear and layer.weight.numel() >= self.least:
                yield replaced(layer, LinearForward(layer))
