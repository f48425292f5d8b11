"""Where a word looks: its cross-attention over the picture, averaged over heads, layers and steps.

DAAM ("What the DAAM", arXiv 2210.04885, section 2): at every place of a feature map each cross-attention spreads a
weight of one over the prompt's tokens. The maps of all layers are enlarged to the latents' size and averaged. The
weights are computed beside the network, which goes its own way with its fused kernels; nothing in it changes.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minti.model import StableDiffusion
from minti.networks.layers import Attend, attention_weights
from minti.text import places, token_ids


class AttentionMaps:
    """Listens to the UNet's cross-attention while it is entered.

        with AttentionMaps(model, prompts) as maps:
            pictures = minti.sample(model, prompts)
        maps.of("<cat>")    # (b, h, w)

    Of a batch that holds unconditional predictions too, which come first, the last `len(prompts)` are listened to: so
    it is with one prompt, not with `also`. The maps are the mean of so many `evaluations` of the UNet.
    """

    def __init__(self, model: StableDiffusion, prompts: list[str]):
        self.model, self.prompts, self.evaluations = model, prompts, 0
        self.input_ids = model.tokenize(prompts)  # b m
        self._sum: Tensor | None = None  # b m h w, over layers and evaluations
        self._size = (0, 0)
        self._layers = [layer for name, layer in model.unet.named_modules() if name.endswith(".attn2")]
        self._undo = ExitStack()

    def __enter__(self) -> "AttentionMaps":
        self._undo.callback(self.model.unet.register_forward_pre_hook(self._begin).remove)
        for layer in self._layers:
            layer.around.append(self._attend)
            self._undo.callback(layer.around.remove, self._attend)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _begin(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        latents = inputs[0]
        if len(latents) < len(self.prompts):
            raise ValueError(f"{len(latents)} pictures in the UNet, maps are kept of {len(self.prompts)} prompts")
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
        """Of every token of the context, (b, m, h, w) float32, which sums to 1 over m at every place.
        Raises ValueError: nothing has been drawn yet."""
        if self._sum is None:
            raise ValueError("nothing has been drawn while the maps were listening; draw inside the with block")
        return self._sum / (self.evaluations * len(self._layers))

    def of(self, word: str) -> Tensor:
        """The weight of a word's tokens, (b, h, w) in [0, 1]; of a word that stands several times, of all of them.
        Raises ValueError: the word is not in one of the prompts, or where that was cut off."""
        ids = token_ids(word, self.model.tokenizer, self.model.words)
        is_word = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for prompt, row, found in zip(self.prompts, self.input_ids.tolist(), is_word):
            found[places(ids, row, word, prompt)] = True
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
