"""Perturbed-attention guidance (PAG, arXiv 2403.17377): away from the prediction with the identity in place of some
self-attention maps, softmax(q kᵀ / √d) v = v, which gives images without structure."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.denoising import Predict
from minti.layers import Attend
from minti.model import StableDiffusion
from minti.sampling import Scale, scale_at


class PerturbedAttention(Adapter):
    """output + s (cond - perturbed), in one batch as in diffusers: B more evaluations a step, not counted.

        with (adapter := PerturbedAttention(3.0)).attached(model):
            minti.sample(model, prompts, guidance=adapter.guidance)

    scale: s, a number or a function of the timestep; usually 3. layers: perturbs the self-attentions whose names
    contain this. With several prompts the last one's prediction is perturbed."""

    name = "perturbed-attention guidance"

    def __init__(self, scale: Scale = 3.0, layers: str = "mid_block"):
        super().__init__()
        self.scale, self.layers = scale, layers
        self._images = 0  # how many rows at the end of the batch are perturbed
        self._difference: Tensor | None = None

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Extends the batch before other adapters see it."""
        modules = model.unet.named_modules()
        chosen = [layer for name, layer in modules if name.endswith(".attn1") and self.layers in name]
        if not chosen:
            raise ValueError(f"no self-attention of the UNet has {self.layers!r} in its name; try 'mid_block'")
        yield model.unet.register_forward_pre_hook(self._grow, prepend=True).remove
        for layer in chosen:
            layer.around.append(self._attend)
            yield partial(layer.around.remove, self._attend)
        yield model.unet.register_forward_hook(self._shrink).remove

    def guidance(self, predict: Predict) -> Predict:
        """The `guidance` of `minti.sample`."""
        return partial(self._guided, predict)

    def _guided(self, predict: Predict, latents: Tensor, t: int) -> Tensor:
        scale = scale_at(self.scale, t, "scale of perturbed-attention guidance")
        self._images = len(latents) if scale else 0
        output, self._images = predict(latents, t), 0
        return output + scale * self._difference if scale else output

    def _grow(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        n = self._images
        return tuple(torch.cat([x, x[-n:]]) for x in inputs) if n else None  # .. u, c -> .. u, c, c

    def _attend(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = self._images
        return torch.cat([attend(q[:-n], k[:-n], v[:-n]), v[-n:]]) if n else attend(q, k, v)

    def _shrink(self, unet: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if n := self._images:
            output, perturbed = output[:-n], output[-n:]
            self._difference = output[-n:] - perturbed
        return output
