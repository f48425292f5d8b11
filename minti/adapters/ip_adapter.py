"""IP-Adapter: an image as a prompt, by a second cross-attention (arXiv 2308.06721, section 3.2, eq. 5; `003`, 19).

The CLIP embedding of an image becomes four tokens as wide as those of a text. Every cross-attention gets further keys
and values for them, and keeps its queries:

    hidden = attend(q, k_text, v_text) + scale · attend(q, k_image, v_image)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.formats.tensors import check_finite, read_content, write_tensors
from minti.loading import load_network
from minti.model import StableDiffusion
from minti.unet import UNet

TOKENS = 4
# Other kinds, by a tensor that the rest lack: all take more of an image than CLIP's one vector.
VARIANTS = {"perceiver_resampler.proj_in": "FaceID Plus", "latents": "Plus", "proj.3": "Full Face", "proj.0": "FaceID"}


class IPAdapter(Adapter):
    """The projection of an image's CLIP embedding to tokens, and their keys and values in every cross-attention. While
    it is attached, use contexts made by `prompted`. Submodules are named as in h94/IP-Adapter's files.
    scale: the weight of the image; 0 switches the adapter off."""

    name = "the IP-Adapter"

    def __init__(self, unet: UNet, clip_dim: int, scale: float = 1.0):
        super().__init__()
        d = unet.config.cross_attention_dim
        self.image_proj = nn.ModuleDict({"proj": nn.Linear(clip_dim, TOKENS * d), "norm": nn.LayerNorm(d)})
        self.ip_adapter = nn.ModuleDict()  # numbered as the original counts, self-attentions too: 1, 3, 5, ...
        for i, layer in enumerate(cross_attentions(unet)):
            k, v = (nn.Linear(d, layer.to_q.out_features, bias=False) for _ in range(2))
            self.ip_adapter[str(2 * i + 1)] = nn.ModuleDict({"to_k_ip": k, "to_v_ip": v})
        self.scale = scale

    @classmethod
    @torch.no_grad()
    def beside(cls, model: StableDiffusion, clip_dim: int, generator: torch.Generator) -> "IPAdapter":
        """A new one, float32: with the text's keys and values, as the original begins, and a random projection."""
        adapter = cls(model.unet, clip_dim)
        for own, layer in zip(adapter.ip_adapter.values(), cross_attentions(model.unet)):
            own["to_k_ip"].weight.copy_(layer.to_k.weight)
            own["to_v_ip"].weight.copy_(layer.to_v.weight)
        adapter.image_proj["proj"].weight.normal_(0, clip_dim**-0.5, generator=generator)
        adapter.image_proj["proj"].bias.zero_()
        return adapter.to(model.device)

    def prompted(self, context: Tensor, image: Tensor | None = None) -> Tensor:
        """A context with an image's tokens behind it, (b, m, d) -> (b, m + 4, d). `image`: its CLIP embedding, (b or 1,
        clip_dim); None for the negative prompt: zeros, as in diffusers."""
        projection = self.image_proj["proj"]
        seen = torch.zeros(1, projection.in_features) if image is None else image
        tokens = projection(seen.to(projection.weight).expand(len(context), -1))
        tokens = self.image_proj["norm"](rearrange(tokens, "b (tokens d) -> b tokens d", tokens=TOKENS))
        return torch.cat([context, tokens.to(context.dtype)], dim=1)

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Gives each cross-attention a second one, to the image's tokens."""
        for own, layer in zip(self.ip_adapter.values(), cross_attentions(model.unet)):
            second = SecondAttention(self, own["to_k_ip"], own["to_v_ip"], model.tokenizer.model_max_length)
            yield layer.register_forward_pre_hook(second.take).remove
            layer.after.append(second.add)
            yield partial(layer.after.remove, second.add)


class SecondAttention:
    """The attention of one layer to the image's tokens, which it takes off the context."""

    def __init__(self, adapter: IPAdapter, to_k: nn.Linear, to_v: nn.Linear, longest: int):
        self.adapter, self.to_k, self.to_v, self.longest = adapter, to_k, to_v, longest
        self.tokens: Tensor | None = None

    def take(self, layer: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """x and the text's context; one that is no longer than a text has no image's tokens."""
        x, context = inputs
        # Contiguous, as diffusers has them: a slice goes through another matrix product, which may round otherwise.
        self.tokens = context[:, -TOKENS:].contiguous() if context.shape[1] % self.longest else None
        return (x, context) if self.tokens is None else (x, context[:, :-TOKENS])

    def add(self, q: Tensor, attended: Tensor) -> Tensor:
        """attended + scale · attend(q, k_image, v_image), (b, heads, n, d)."""
        if self.adapter.scale == 0 or self.tokens is None:
            return attended
        both = (own(self.tokens.to(own.weight.dtype)).to(q.dtype) for own in (self.to_k, self.to_v))
        k, v = (rearrange(x, "b m (heads d) -> b heads m d", heads=q.shape[1]) for x in both)
        return attended + self.adapter.scale * F.scaled_dot_product_attention(q, k, v)


def cross_attentions(unet: UNet, blocks: Sequence[str] = ("down_blocks", "up_blocks", "mid_block")) -> list[nn.Module]:
    """By default in the order in which the original counts them: of the encoder half, the decoder half, the middle."""
    parts = (part for block in blocks for part in getattr(unet, block).named_modules())
    return [layer for name, layer in parts if name.endswith(".attn2")]


def load_ip_adapter(model: StableDiffusion, path: str | os.PathLike[str], scale: float = 1.0) -> IPAdapter:
    """The IP-Adapter of a file of h94/IP-Adapter, `.safetensors` or `.bin`; in the model's dtype, frozen.
    Raises FileNotFoundError, ValueError: no such file, a damaged one, another model's, or another kind of adapter."""
    path = Path(path)
    content = read_content(path, ": no such IP-Adapter; expected a file such as ip-adapter_sd15.safetensors")
    tensors = content if isinstance(content, dict) else {}
    if all(isinstance(group, dict) for group in tensors.values()):  # the original's .bin
        tensors = {f"{name}.{key}": tensor for name, group in tensors.items() for key, tensor in group.items()}
    tensors = {str(key): tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    known = [kind for key, kind in VARIANTS.items() if any(k.startswith(f"image_proj.{key}") for k in tensors)]
    weight = tensors.get("image_proj.proj.weight")
    if known or weight is None or weight.ndim != 2:
        what = f"an IP-Adapter {known[0]}" if known else "no IP-Adapter"
        raise ValueError(f"{path} is {what}; minti reads the plain kind only, such as ip-adapter_sd15.safetensors")
    make = lambda: IPAdapter(model.unet, weight.shape[1], scale)  # noqa: E731
    adapter = load_network(make, path, model.device, model.dtype, tensors=tensors)
    check_finite(path, adapter.state_dict())
    return adapter


def save_ip_adapter(adapter: IPAdapter, path: str | os.PathLike[str]) -> None:
    """Writes a file that diffusers reads too. Raises ValueError, OSError: not finite, or it cannot be written."""
    write_tensors(path, adapter.state_dict())
