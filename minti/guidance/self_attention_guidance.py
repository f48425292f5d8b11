"""Self-attention guidance (SAG, arXiv 2210.00939, eq. 16 and 25): away from the prediction for an image that is blurred
where the network attends, which brings detail there. (`003`, 34, has it the wrong way round: it blurs the background.)
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.denoising import Predict
from minti.guidance.attention import attention_weights, feature_size
from minti.layers import Attend
from minti.model import StableDiffusion
from minti.sampling import Scale, conditional, scale_at


class SelfAttentionGuidance(Adapter):
    """output + s (plain - degraded): the predictions for the same latents, and for partly blurred ones. Plain is the
    unconditional prediction, or the prompt's where there is none; B more evaluations a step, not counted.

        with (adapter := SelfAttentionGuidance(0.75)).attached(model):
            minti.sample(model, prompts, guidance=adapter.guidance)

    scale: s, a number or a function of the timestep; usually at most 1."""

    name = "self-attention guidance"

    def __init__(self, scale: Scale = 0.75):
        super().__init__()
        self.scale, self._model = scale, None
        self._images = 0  # how many rows at the beginning of the batch are listened to
        self._seen: dict[str, Tensor] = {}

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Reads the self-attention of the UNet's middle block."""
        self._model = model
        layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1
        layer.around.append(self._attend)
        yield partial(layer.around.remove, self._attend)
        yield model.unet.register_forward_hook(self._keep).remove

    def guidance(self, predict: Predict) -> Predict:
        """The `guidance` of `minti.sample`."""
        return partial(self._guided, predict)

    def _guided(self, predict: Predict, latents: Tensor, t: int) -> Tensor:
        scale = scale_at(self.scale, t, "scale of self-attention guidance")
        if not scale:
            return predict(latents, t)
        self._images = len(latents)
        output, self._images = predict(latents, t), 0
        context, plain, seen = (self._seen.pop(key) for key in ("context", "plain", "attended"))
        scheduler, size = self._model.scheduler, latents.shape[-2:]
        clean, noise = scheduler.clean_and_noise(plain, latents, t)
        mask = seen.view(len(latents), 1, *feature_size(seen.shape[1], *size)).to(latents)  # b 1 h' w'
        degraded = scheduler.add_noise(blurred_where(clean, F.interpolate(mask, size)), noise, t)
        return output + scale * (plain - conditional(self._model.unet, context)(degraded, t))

    def _attend(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if n := self._images:
            self._seen["attended"] = attended(q[:n], k[:n])  # b n
        return attend(q, k, v)

    def _keep(self, unet: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if n := self._images:
            self._seen |= {"context": inputs[2][:n], "plain": output[:n]}


def attended(q: Tensor, k: Tensor) -> Tensor:
    """Which positions are attended to more than on average: q and k, (b, heads, n, d) -> (b, n), bool."""
    return attention_weights(q, k).mean(dim=1).sum(dim=1) > 1.0  # over the queries, each of which gives a weight of one


def blurred_where(latents: Tensor, mask: Tensor) -> Tensor:
    """Gaussian blur of width 1, cut off at 4, where the mask is 1: (b, c, h, w)."""
    if min(latents.shape[-2:]) < 5:
        raise ValueError(f"latents of {tuple(latents.shape[-2:])} are too small to blur; sample a larger image")
    bell = torch.exp(-0.5 * torch.linspace(-4, 4, 9).pow(2))
    bell = (bell / bell.sum()).to(latents)
    kernel = (bell[:, None] @ bell[None, :]).expand(latents.shape[1], 1, 9, 9)
    blurred = F.conv2d(F.pad(latents, [4] * 4, mode="reflect"), kernel, groups=latents.shape[1])
    return blurred * mask + latents * (1 - mask)
