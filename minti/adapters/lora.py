"""LoRA, low-rank adaptation of frozen layers (arXiv 2106.09685; slides `001`, eq. 2-6):

    y = W₀ x + w (α / r) B A x        W₀: (d_out, d_in), A: (r, d_in), B: (d_out, r), with r far below both

B is zero at first, so that the model is unchanged. Beside a k × k convolution, A is one to r channels with the layer's
stride and padding, B one of 1 × 1 (LoCon, C3Lier, LCM-LoRA)."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.model import StableDiffusion
from minti.runs.messages import short_repr

LAYERS = {
    "attention": r"unet\..*\.(to_[qkv]|to_out\.0)",
    "projections": r"unet\..*\.proj_(in|out)",
    "feed_forward": r"unet\..*\.ff\.net\.(0\.proj|2)",
    "convolutions": r"unet\..*\.(conv1|conv2|conv_shortcut|time_emb_proj|(down|up)samplers\.0\.conv)",
}
TEXT_LAYERS = r"text_encoder\..*\.(q|k|v|out)_proj"


class Pair(nn.Module):
    """A LoRA's matrices of one layer, in float32: `down` is A, (r, d_in), beside a k × k convolution (r, d_in, k, k);
    `up` is B, (d_out, r); and α."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        super().__init__()
        self.down, self.up, self.rank, self.alpha = nn.Parameter(down), nn.Parameter(up), len(down), float(alpha)
        if not 0 < self.alpha < torch.finfo(torch.float32).max:
            raise ValueError(f"alpha = {short_repr(alpha)}; expected a number above 0")

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """B A x, of the layer's own shape: (..., d_in) -> (..., d_out), (b, d_in, h, w) -> (b, d_out, h', w')."""
        x = x.to(self.down.dtype)
        if not isinstance(layer, nn.Conv2d):
            return F.linear(F.linear(x, self.down), self.up)
        down = F.conv2d(x, self.down.view(*self.down.shape[:2], *layer.kernel_size), None, layer.stride, layer.padding)
        return F.conv2d(down, self.up[..., None, None])

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the layer's weight; of a 1 × 1 convolution's as if it were linear."""
        return (len(self.up), *self.down.shape[1:])


class LoRA(Adapter):
    """Low-rank updates of a model's layers, in float32 whatever the model's dtype, and computed as peft does.

    pairs: the matrices by their layer's path, as files have it: "unet.mid_block.attentions.0.proj_in".
    weight: w, how strongly it acts; can be changed at any time."""

    name = "the LoRA"

    def __init__(
        self,
        model: StableDiffusion,
        rank: int = 4,
        alpha: float | None = None,
        layers: Sequence[str] = ("attention",),
        text_encoder: bool = False,
        generator: torch.Generator | None = None,
        *,
        pairs: dict[str, Pair] | None = None,
        weight: float = 1.0,
    ):
        """A new one, with a random A and B = 0; or one of those `pairs`, whatever the rest.

        rank: r, the same in all layers. alpha: α, so that one learning rate fits any rank; None is the rank.
        layers: of the UNet, "attention" (to_q, to_k, to_v, to_out), "projections" (proj_in, proj_out), "feed_forward",
            "convolutions" (those of resnets, down- and upsamplers, with time_emb_proj).
        text_encoder: whether its attention is adapted, too. Raises ValueError: names the option."""
        super().__init__()
        self.pairs, self.weight = {} if pairs is None else pairs, weight
        if pairs is None:
            if isinstance(layers, str) or not {*layers} <= {*LAYERS} or not (layers or text_encoder):
                raise ValueError(f"layers = {short_repr(layers)}; expected a list of some of {', '.join(LAYERS)}")
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"rank = {short_repr(rank)}; expected a whole number from 1")
            chosen = "|".join([*(LAYERS[kind] for kind in layers), *([TEXT_LAYERS] if text_encoder else [])])
            for path, layer in layers_of(model).items():
                if re.fullmatch(chosen, path):
                    d_out, *d_in = weight_shape(layer)
                    down = nn.init.kaiming_uniform_(torch.empty(rank, *d_in), a=math.sqrt(5), generator=generator)
                    self.pairs[path] = Pair(down, torch.zeros(d_out, rank), rank if alpha is None else alpha)
        for path, pair in self.pairs.items():
            self.add_module(path.replace(".", "-"), pair.to(model.device))  # torch allows no dots in it

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Adds each pair's output to that of its layer."""
        for pair, layer in self.beside(model):
            yield layer.register_forward_hook(partial(self._add, pair)).remove

    def _add(self, pair: Pair, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return (output + pair(inputs[0], layer) * self.scale(pair)).to(output.dtype)

    @contextmanager
    def merged(self, model: StableDiffusion) -> Iterator[None]:
        """A context in which it is merged into the model's weights, W = W₀ + w (α / r) B A, and costs no time. The
        weights are restored at its end; a model that is saved inside keeps the LoRA."""
        former = []
        try:
            for pair, layer in self.beside(model):
                former.append((layer.weight, old := layer.weight.data))
                update = (pair.up @ pair.down.flatten(1)).detach() * self.scale(pair)  # d_out (d_in k k)
                layer.weight.data = (old + update.view_as(old)).to(old.dtype)
            yield
        finally:
            for weight, old in former:
                weight.data = old

    def scale(self, pair: Pair) -> float:
        """w α / r."""
        return self.weight * pair.alpha / pair.rank

    def beside(self, model: StableDiffusion) -> Iterator[tuple[Pair, nn.Module]]:
        """Each pair with its layer. Raises ValueError: the model has no such layer, or one of another size."""
        layers = layers_of(model)
        for path, pair in self.pairs.items():
            layer = layers.get(path)
            if layer is None or pair.shape != weight_shape(layer):
                there = "not there" if layer is None else weight_shape(layer)
                other = f"{self.name} was learned on another model"
                raise ValueError(f"{other}: {path} is {pair.shape}, and in this one {there}")
            yield pair, layer


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Of a layer's weight, (d_out, d_in), or of a convolution larger than 1 × 1 (d_out, d_in, k, k)."""
    shape = tuple(layer.weight.shape)
    return shape if shape[2:] != (1, 1) else shape[:2]


def layers_of(model: StableDiffusion) -> dict[str, nn.Module]:
    """The layers that a LoRA can adapt, linear ones and convolutions, by their paths."""
    networks = {"unet.": model.unet, "text_encoder.text_model.": model.text_encoder}
    return {
        prefix + name.removeprefix("text_model."): layer  # a level that transformers has left out since 5.6
        for prefix, network in networks.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
