"""Attention maps (DAAM, arXiv 2210.04885, section 2): a word's cross-attention over the image, averaged over heads,
layers and steps. The maps of all layers are enlarged to the latents' size. The weights are computed once more beside
the network, whose results stay bit-identical."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.guidance.attention import attention_weights, feature_size
from minti.layers import Attend
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.text import token_ids


class AttentionMaps(Adapter):
    """Records the UNet's cross-attention maps while it is attached.

        with (maps := AttentionMaps(model, prompts)).attached(model):
            images = minti.sample(model, prompts)
        maps.of("<cat>")    # (b, h, w)

    Of a batch the last `len(prompts)` images are recorded: behind the unconditional ones. (Not with extra prompts.)
    """

    name = "the recorder of attention maps"

    def __init__(self, model: StableDiffusion, prompts: list[str]):
        super().__init__()
        self.model, self.prompts, self.evaluations = model, prompts, 0
        self.input_ids = model.tokenize(prompts)  # b m
        self._sum: Tensor | None = None  # b m h w, over layers and evaluations
        self._size, self._layers = (0, 0), 0

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Reads the probabilities of every cross-attention."""
        yield model.unet.register_forward_pre_hook(self._begin).remove
        layers = [layer for name, layer in model.unet.named_modules() if name.endswith(".attn2")]
        self._layers = len(layers)
        for layer in layers:
            layer.around.append(self._attend)
            yield partial(layer.around.remove, self._attend)

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
        """Of every token of the context, (b, m, h, w) float32, which sums to 1 over m at every position."""
        if self._sum is None:
            raise ValueError("nothing was sampled while the maps were attached; sample inside the with block")
        return self._sum / (self.evaluations * self._layers)

    def of(self, word: str) -> Tensor:
        """The weight of a word's tokens, (b, h, w) in [0, 1], summed over all its occurrences.
        Raises ValueError: a prompt lacks the word, or was cut off before it."""
        ids = token_ids(word, self.model.tokenizer, self.model.words)
        is_word = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for prompt, row, found in zip(self.prompts, self.input_ids.tolist(), is_word):
            found[token_positions(ids, row, word, prompt)] = True
        return (self.maps * is_word[:, :, None, None].to(self.maps)).sum(dim=1)


def token_positions(ids: list[int], row: list[int], word: str, prompt: str) -> list[int]:
    """The positions of a word's token ids in a prompt's `row`, of all occurrences."""
    starts = [i for i in range(len(row)) if ids and row[i : i + len(ids)] == ids]
    if not starts:
        where = f"the prompt {short_repr(prompt)}, or at its end that was cut off"
        raise ValueError(f"{short_repr(word)} is not in {where}")
    return [start + i for start in starts for i in range(len(ids))]
