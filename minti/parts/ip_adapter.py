"""A picture as a prompt: a second cross-attention, beside the text's, to four tokens made of the picture.

IP-Adapter (arXiv 2308.06721, section 3.2, eq. 5; `003`, 19). What a frozen CLIP sees in the picture, one vector, becomes
four tokens as wide as a word's; each cross-attention has keys and values of its own for them, and the text's queries:

    hidden = attend(q, k_text, v_text) + scale · attend(q, k_picture, v_picture)
"""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from minti.checkpoints.weights import build, fill, read_pickle, read_tensors
from minti.machine.files import replacing
from minti.model import StableDiffusion
from minti.networks.kernels import attention
from minti.networks.layers import Attention
from minti.networks.unet import UNet
from minti.parts.part import Part

TOKENS = 4
# What else goes by the name, by a key that only it has; all look at more of the picture than one vector.
VARIANTS = {"perceiver_resampler.proj_in.weight": "FaceID Plus", "latents": "Plus", "proj.3.weight": "Full Face",
            "proj.0.weight": "FaceID"}  # fmt: skip


class PictureProjection(nn.Module):
    """What CLIP sees, (b, clip_dim), as tokens: (b, 4, d)."""

    def __init__(self, clip_dim: int, d: int):
        super().__init__()
        self.proj, self.norm = nn.Linear(clip_dim, TOKENS * d), nn.LayerNorm(d)

    def forward(self, picture: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(picture), "b (tokens d) -> b tokens d", tokens=TOKENS))


class IPAdapter(Part):
    """The picture's tokens, and the keys and values of every cross-attention; the keys of its state are the file's.

    Attributes:
        picture: (b or 1, clip_dim): what CLIP sees in the picture of each drawing, or of all; the unconditional
            predictions of guidance see zeros, as in diffusers.
        scale: of what the picture says; 0: the model alone, bit for bit.
    """

    name = "the IP-Adapter"

    def __init__(self, unet: UNet, clip_dim: int):
        super().__init__()
        d, widths = unet.config.cross_attention_dim, [layer.to_q.out_features for layer in cross_attentions(unet)]
        self.image_proj = PictureProjection(clip_dim, d)
        make = lambda width: nn.Linear(d, width, bias=False)  # noqa: E731
        # Numbered as the original does, which counts the self-attentions before them too: 1, 3, 5, ...
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): nn.ModuleDict({"to_k_ip": make(w), "to_v_ip": make(w)}) for i, w in enumerate(widths)}
        )
        self.picture, self.scale, self._tokens = torch.zeros(1, clip_dim), 1.0, torch.empty(0)

    @classmethod
    @torch.no_grad()
    def beside(cls, model: StableDiffusion, clip_dim: int, generator: torch.Generator) -> "IPAdapter":
        """A new one, float32: it begins with the text's keys and values, as the original, and random tokens."""
        adapter = cls(model.unet, clip_dim).to(model.device)
        for own, layer in zip(adapter.ip_adapter.values(), cross_attentions(model.unet)):
            own["to_k_ip"].weight.copy_(layer.to_k.weight)
            own["to_v_ip"].weight.copy_(layer.to_v.weight)
        weight, bias = adapter.image_proj.proj.weight, adapter.image_proj.proj.bias
        weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(clip_dim))
        bias.zero_()
        return adapter

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Makes tokens when the UNet begins, and goes behind every cross-attention to the text."""
        unet = model.unet
        yield unet.conv_in.register_forward_pre_hook(lambda _, inputs: self._look(unet, len(inputs[0]))).remove
        for own, layer in zip(self.ip_adapter.values(), cross_attentions(unet)):
            further = partial(self._attend, own)
            layer.after.append(further)
            yield partial(layer.after.remove, further)

    def _look(self, unet: UNet, rows: int) -> None:
        """The tokens of a batch of the UNet; in guidance's the unconditional predictions come first."""
        pictures = unet.pictures or rows
        if len(self.picture) not in (1, pictures):
            raise ValueError(f"{len(self.picture)} pictures as prompts of {pictures} drawings; give one, or one for each")
        weight = self.image_proj.proj.weight
        seen = self.picture.to(weight).expand(pictures, -1)
        if rows > pictures:
            seen = torch.cat([torch.zeros_like(seen), *[seen] * (rows // pictures - 1)])
        self._tokens = self.image_proj(seen)  # b 4 d

    def _attend(self, own: nn.ModuleDict, q: Tensor, attended: Tensor) -> Tensor:
        if self.scale == 0:
            return attended
        k, v = (
            rearrange(own[name](self._tokens).to(q.dtype), "b m (heads d) -> b heads m d", heads=q.shape[1])
            for name in ("to_k_ip", "to_v_ip")
        )
        return attended + self.scale * attention(q, k, v)


def cross_attentions(unet: UNet) -> list[Attention]:
    """In the order in which the original counts them: the left half's, the right half's, the middle's."""
    blocks = (unet.down_blocks, unet.up_blocks, unet.mid_block)
    return [layer for block in blocks for name, layer in block.named_modules() if name.endswith(".attn2")]


def load_ip_adapter(model: StableDiffusion, path: str | os.PathLike[str]) -> IPAdapter:
    """An adapter from a file of h94/IP-Adapter's or of `save_ip_adapter`, in the model's dtype, frozen.

    Raises FileNotFoundError, ValueError: no such file, a damaged one, one of another model, or another kind of adapter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such IP-Adapter; expected a file such as ip-adapter_sd15.safetensors")
    tensors = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(tensors.get("image_proj"), dict):  # the original's .bin: {"image_proj": {...}, "ip_adapter": {...}}
        tensors = {f"{part}.{key}": value for part, values in tensors.items() for key, value in values.items()}
    for key, kind in VARIANTS.items():
        if f"image_proj.{key}" in tensors:
            raise ValueError(f"{path} is an IP-Adapter {kind}, which minti does not know; use the plain one, such as "
                             "ip-adapter_sd15.safetensors")  # fmt: skip
    weight = tensors.get("image_proj.proj.weight")
    if weight is None or weight.ndim != 2:
        raise ValueError(f"{path} is no IP-Adapter: it lacks image_proj.proj.weight")
    adapter = build(lambda: IPAdapter(model.unet, weight.shape[1]), path)
    fill(adapter, tensors, path, model.dtype, model.device)
    adapter.picture = torch.zeros(1, weight.shape[1])
    _check_finite(adapter, f"{path} is damaged; fetch it again")
    return adapter


def save_ip_adapter(adapter: IPAdapter, path: str | os.PathLike[str]) -> None:
    """Writes a file that diffusers' `load_ip_adapter` reads too, all at once.

    Raises ValueError: a number is not finite. OSError: it cannot be written.
    """
    _check_finite(adapter, f"{path} is not written; try a lower learning rate")
    with replacing(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}, temporary)


def _check_finite(adapter: IPAdapter, otherwise: str) -> None:
    for key, value in adapter.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{key} of the IP-Adapter has numbers that are not finite: {otherwise}")

