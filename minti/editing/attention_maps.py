"""Attention maps (DAAM): a word's cross-attention over the image, averaged over heads, layers and steps.

DAAM ("What the DAAM", arXiv 2210.04885, section 2): at every position of a feature map each cross-attention spreads a
weight of one over the prompt's tokens. The maps of all layers are enlarged to the latents' size and averaged. The
weights are computed beside the network, which keeps its fused kernels; nothing in it changes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.guidance.attention import attention_weights
from minti.layers import Attend
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.text import token_ids


class AttentionMaps(Adapter):
    """Records the UNet's cross-attention while it is attached.

        with (maps := AttentionMaps(model, prompts)).attached(model):
            images = minti.sample(model, prompts)
        maps.of("<cat>")    # (b, h, w)

    Of a batch that holds unconditional predictions too, which come first, the last `len(prompts)` are recorded: so it
    is with one prompt, not with extra prompts. The maps are the mean over `evaluations` of the UNet.
    """

    name = "the recorder of attention maps"

    def __init__(self, model: StableDiffusion, prompts: list[str]):
        super().__init__()
        self.model, self.prompts, self.evaluations = model, prompts, 0
        self.input_ids = model.tokenize(prompts)  # b m
        self._sum: Tensor | None = None  # b m h w, over layers and evaluations
        self._size, self._layers = (0, 0), 0

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Wraps every cross-attention."""
        yield model.unet.register_forward_pre_hook(self._begin).remove
        layers = [layer for name, layer in model.unet.named_modules() if name.endswith(".attn2")]
        self._layers = len(layers)
        for layer in layers:
            layer.around.append(self._attend)
            yield partial(layer.around.remove, self._attend)

    def __enter__(self) -> "AttentionMaps":
        """As in version 0.1: attached to its model for a while."""
        self._entered = self.attached(self.model)
        self._entered.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.__exit__(*error)

    def _begin(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        latents = inputs[0]
        if len(latents) < len(self.prompts):
            raise ValueError(f"{len(latents)} images in the UNet, maps are kept of {len(self.prompts)} prompts")
        self._size = latents.shape[-2:]
        self.evaluations += 1

    def _attend(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            weights = attention_weights(*(x[-len(self.prompts) :] for x in (q, k))).mean(dim=1)  # b n m
            height, width = feature_size(weights.shape[1], *self._size)
            maps = rearrange(weights, "b (h w) m -> b m h w", h=height, w=width)
            maps = F.interpolate(maps, self._size, mode="bilinear")  # a mean of neighbours: still sums to one over m
            self._sum = maps if self._sum is None else self._sum + maps
        return attend(q, k, v)

    @property
    def maps(self) -> Tensor:
        """Of every token of the context, (b, m, h, w) float32, which sums to 1 over m at every position.
        Raises ValueError: nothing has been sampled yet."""
        if self._sum is None:
            raise ValueError("nothing was sampled while the maps were attached; sample inside the with block")
        return self._sum / (self.evaluations * self._layers)

    def of(self, word: str) -> Tensor:
        """The weight of a word's tokens, (b, h, w) in [0, 1]; of a word that stands several times, of all of them.
        Raises ValueError: the word is not in one of the prompts, or where that was cut off."""
        ids = token_ids(word, self.model.tokenizer, self.model.words)
        is_word = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for prompt, row, found in zip(self.prompts, self.input_ids.tolist(), is_word):
            found[token_positions(ids, row, word, prompt)] = True
        return (self.maps * is_word[:, :, None, None].to(self.maps)).sum(dim=1)


def feature_size(positions: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a feature map with so many positions, from latents that are halved, rounding up.
    Raises ValueError: no halving leads to it."""
    h, w = height, width
    while h * w > positions:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != positions:
        raise ValueError(f"{positions} positions do not come from {height} x {width} latents by halving")
    return h, w


def token_positions(ids: list[int], row: list[int], word: str, prompt: str) -> list[int]:
    """The positions of a word's token ids among a prompt's, all occurrences. Raises ValueError: there is none."""
    starts = [i for i in range(len(row)) if ids and row[i : i + len(ids)] == ids]
    if not starts:
        raise ValueError(
            f"{short_repr(word)} is not in the prompt {short_repr(prompt)}, or at its end that was cut off"
        )
    return [start + i for start in starts for i in range(len(ids))]
