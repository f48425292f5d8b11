"""LoRA: beside a frozen layer, the product of two thin matrices learns (arXiv 2106.09685; lecture notes `001`, eq. 2-6).

    y = W₀ x + w (α / r) B A x        W₀: (d_out, d_in), A: (r, d_in), B: (d_out, r), with r far below both

B is zero at first, so that the model begins as it was.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.machine.messages import shortened, shown
from minti.model import StableDiffusion
from minti.parts.part import Part

KINDS = {
    "attention": r"unet\..*\.(to_[qkv]|to_out\.0)",
    "projections": r"unet\..*\.proj_(in|out)",
    "feed_forward": r"unet\..*\.ff\.net\.(0\.proj|2)",
}
IN_TEXT = r"text_encoder\..*\.(q|k|v|out)_proj"


class Pair(nn.Module):
    """The two matrices of one layer, in float32: `down` is A, (r, d_in), and `up` is B, (d_out, r); and their alpha."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        super().__init__()
        self.down, self.up, self.alpha = nn.Parameter(down), nn.Parameter(up), float(alpha)

    @property
    def rank(self) -> int:
        """r."""
        return len(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """B A x: (..., d_in) -> (..., d_out), or, beside a 1 × 1 convolution, (b, d_in, h, w) -> (b, d_out, h, w)."""
        x = x.to(self.down.dtype)
        if x.ndim == 4:
            return F.conv2d(F.conv2d(x, self.down[..., None, None]), self.up[..., None, None])
        return F.linear(F.linear(x, self.down), self.up)


class LoRA(Part):
    """Low-rank updates of a model's layers, computed as peft does, whatever the model's dtype.

    Attributes:
        pairs: each layer's two matrices, by the path that it has in files: "unet.mid_block.attentions.0.proj_in".
        weight: w, how strongly it acts. It can be set at any time.
    """

    name = "the LoRA"

    def __init__(
        self,
        model: StableDiffusion,
        rank: int = 4,
        alpha: float | None = None,
        layers: Sequence[str] = ("attention",),
        text_encoder: bool = False,
        generator: torch.Generator | None = None,
    ):
        """A random A, drawn as peft draws it, and B = 0.

        Args:
            rank: r, the same in all layers; where a layer is narrower, it wastes memory, but is no error.
            alpha: α; None is the rank.
            layers: of the UNet: "attention" (its four matrices), "projections" (the 1 × 1 convolutions before and
                behind it), "feed_forward".
            text_encoder: its attention's four matrices, too.

        Raises ValueError: no such kind of layers, or none; a rank below 1; an alpha that is not above 0.
        """
        if isinstance(layers, str) or not {*layers} <= {*KINDS} or not (layers or text_encoder):
            raise ValueError(f"layers = {shown(layers)}; expected some of {', '.join(KINDS)}, in a list")
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank = {shown(rank)}; expected a whole number from 1")
        alpha = rank if alpha is None else alpha
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha = {shown(alpha)}; expected a number above 0")
        patterns = [*(KINDS[kind] for kind in layers), *([IN_TEXT] if text_encoder else [])]
        pairs = {}
        for path, layer in layers_of(model).items():
            if re.fullmatch("|".join(patterns), path):
                d_out, d_in = layer.weight.shape[:2]
                down = nn.init.kaiming_uniform_(torch.empty(rank, d_in), a=math.sqrt(5), generator=generator)
                pairs[path] = Pair(down, torch.zeros(d_out, rank), alpha)
        self._begin(pairs, model.device)

    @classmethod
    def of(cls, pairs: dict[str, Pair], device: torch.device, weight: float = 1.0) -> "LoRA":
        """Pairs that there are already, each with a rank and an alpha of its own, as one LoRA."""
        lora = cls.__new__(cls)
        lora._begin(pairs, device, weight)
        return lora

    def _begin(self, pairs: dict[str, Pair], device: torch.device, weight: float = 1.0) -> None:
        super().__init__()
        self.pairs, self.weight = pairs, weight
        for path, pair in pairs.items():
            self.add_module(path.replace(".", "-"), pair.to(device))  # torch allows no dots in a module's name

    def scale(self, pair: Pair) -> float:
        """w α / r."""
        return self.weight * pair.alpha / pair.rank

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Listens to its layers. Raises ValueError: one is not there, or of another size."""
        for pair, layer in self.beside(model):
            yield layer.register_forward_hook(self._adding(pair)).remove

    def _adding(self, pair: Pair) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        # y = W₀ x + w (α / r) B A x
        return lambda layer, inputs, output: (output + pair(inputs[0]) * self.scale(pair)).to(output.dtype)

    def beside(self, model: StableDiffusion) -> list[tuple[Pair, nn.Module]]:
        """Each pair with its layer. Raises ValueError: one is not there, or of another size."""
        layers = layers_of(model)
        for path, pair in self.pairs.items():
            ours = (len(pair.up), pair.down.shape[1])
            theirs = tuple(layers[path].weight.shape[:2]) if path in layers else "not there"
            if ours != theirs:
                what = f"its {shortened(path)} is for a layer of {ours}, and the model's is {theirs}"
                raise ValueError(f"{self.name} was learned on another model: {what}")
        return [(pair, layers[path]) for path, pair in self.pairs.items()]

    @torch.no_grad()
    def merge(self, model: StableDiffusion) -> list[tuple[nn.Parameter, Tensor]]:
        """Adds the updates to the model's weights for good: W = W₀ + w (α / r) B A.

        Returns the weights with what they were: of the layers that it touches, a second copy.
        """
        if self._is_inside:
            raise RuntimeError(f"{self.name} is inside a model already; leave that first")
        kept = []
        for pair, layer in self.beside(model):
            old, update = layer.weight.data, pair.up @ pair.down * self.scale(pair)  # d_out d_in
            layer.weight.data = (old + update.view_as(old)).to(old.dtype)
            kept.append((layer.weight, old))
        return kept

    @contextmanager
    def merged(self, model: StableDiffusion) -> Iterator[None]:
        """A context in which the model has it in its weights and nothing more to compute; behind it they are as before."""
        kept = self.merge(model)
        try:
            yield
        finally:
            for weight, old in kept:
                weight.data = old


def layers_of(model: StableDiffusion) -> dict[str, nn.Module]:
    """The layers that a LoRA can stand beside, linear ones and 1 × 1 convolutions, by their paths in files."""
    layers = {f"unet.{name}": layer for name, layer in model.unet.named_modules()}
    for name, layer in model.text_encoder.named_modules():  # since transformers 5.6 without a level `text_model`
        layers[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = layer
    is_one = lambda layer: isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)  # noqa: E731
    return {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear) or is_one(layer)}
