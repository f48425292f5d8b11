"""DeepCache: deep features of the UNet, which change slowly, are reused for some steps (arXiv 2312.00858, section 3.2,
eq. 4 to 6). One of k steps is whole; the others compute the highest levels only: right_m(left_m(latents_t), cached)."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.layers import ResnetBlock, SpatialTransformer
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.unet import UNet


class DeepCache(Adapter):
    """Computes the UNet whole in every k-th step only.

    The cache resets itself with another context or shape, or a timestep above the last. Where a gradient flows to the
    latents, every step is whole. A ControlNet acts through the cache.

    every: k; 1 changes no bit. branch: the lowest skip connection that a short step computes: of SD v1.4's 12, 2 is all
    of the highest level."""

    name = "DeepCache"

    def __init__(self, every: int, branch: int = 2):
        super().__init__()
        if every < 1:
            steps = f"keep deep features for {short_repr(every)} steps"
            raise ValueError(f"{steps}; expected 1 (every step is whole) or more")
        self.every, self.branch = every, branch
        self.refresh()

    def refresh(self) -> None:
        """Clears the cache: the next step is whole."""
        self._deep: Tensor | None = None  # b c h w, as the resnet that takes connection `branch` gets it
        self._steps, self._last = 0, (None, None, 0.0)

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces the UNet's `forward`."""
        unet, lowest = model.unet, len(model.unet.skip_channels) - 1
        if not 0 <= self.branch <= lowest:
            raise ValueError(f"branch = {short_repr(self.branch)}; expected 0 to {lowest}")
        if "forward" in vars(unet):
            raise ValueError("the UNet keeps deep features already; one DeepCache is enough")
        left, right = (side[: self.branch + 1] for side in rungs(unet))
        right[-1][0] = None  # what is kept has been doubled

        def keep(resnet: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            if self._deep is None:  # in a whole step
                self._deep = inputs[0][:, : -unet.skip_channels[self.branch]].detach()

        def forward(noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            run, t = (noisy_latents.shape, context.shape, context.data_ptr()), timesteps.max().item()
            former, _, last = self._last
            goes_on = self._deep is not None and not noisy_latents.requires_grad and run == former and t <= last
            self._steps = (self._steps + 1) % self.every if goes_on else 0
            self._last = run, context, t  # the context is held, so that no other comes to lie where it lies
            if self._steps > 0:
                return above(unet, left, right, self._deep, noisy_latents, timesteps, context)
            self._deep = None
            return UNet.forward(unet, noisy_latents, timesteps, context)

        yield self.refresh
        yield right[-1][1].register_forward_pre_hook(keep).remove
        unet.forward = forward
        yield lambda: delattr(unet, "forward")


def rungs(unet: UNet) -> tuple[list[list[Any]], list[list[Any]]]:
    """The layers of both halves: left[i] produces the skip connection of right[i], which may first double its x."""
    pairs = lambda block: [[p for p in pair if p is not None] for pair in zip(block.resnets, block.attentions)]  # noqa: E731
    left, right, doubling = [[unet.conv_in]], [], None
    for block in unet.down_blocks:
        left += pairs(block) + [[layer] for layer in block.downsamplers]
    for block in unet.up_blocks:
        right += [[None, *pair] for pair in pairs(block)]
        right[-len(block.resnets)][0], doubling = doubling, next(iter(block.upsamplers), None)
    return left, right[::-1]


def above(unet: UNet, left: list, right: list, deep: Tensor, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The UNet's output from its highest layers and the cached features, (b, c, h', w')."""
    time_emb = unet.embed_time(t, latents.dtype)
    conditions = {ResnetBlock: (time_emb,), SpatialTransformer: (context,)}
    through = lambda x, layer: layer(x, *conditions.get(type(layer), ()))  # noqa: E731
    x, skips = deep, [latents]
    for layers in left:
        skips.append(reduce(through, layers, skips[-1]))
    for doubling, *layers in reversed(right):
        x = x if doubling is None else doubling(x, size=skips[-1].shape[-2:])
        x = reduce(through, layers, torch.cat([x, skips.pop()], dim=1))  # b (c + c_skip) h w -> b c_out h w
    return unet.conv_out(F.silu(unet.conv_norm_out(x)))
