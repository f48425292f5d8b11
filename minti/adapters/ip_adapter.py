"""A picture as a prompt: beside the attention to the text a second one, to four tokens that are made of the picture.

IP-Adapter (arXiv 2308.06721, section 3.2, eq. 5; `003`, 19). What a frozen CLIP sees in a picture, one vector, becomes
four tokens as wide as a word's. Every cross-attention gets further keys and values for them; its queries stay:

    hidden = attend(q, k_text, v_text) + scale · attend(q, k_picture, v_picture)
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.formats.pickles import read_pickle
from minti.formats.tensors import read_tensors
from minti.loading import load_network
from minti.model import StableDiffusion
from minti.runs.files import replacing
from minti.runs.messages import one_line, shortened
from minti.unet import UNet

TOKENS = 4
# What else goes by the name, by a tensor that the others lack: all see more in a picture than CLIP's one vector.
VARIANTS = {"perceiver_resampler.proj_in": "FaceID Plus", "latents": "Plus", "proj.3": "Full Face", "proj.0": "FaceID"}


class IPAdapter(Adapter):
    """What makes tokens of a picture, and keys and values of them for every cross-attention.

    While it is inside, a prompt is a context with the picture's tokens behind the text's, as `prompted` makes them.
    Submodules are named as in h94/IP-Adapter's files.

    Attributes:
        scale: how much the picture counts; at 0 the model is alone, bit for bit.
    """

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

    def prompted(self, context: Tensor, picture: Tensor | None = None) -> Tensor:
        """A prompt that a picture belongs to: (b, m, d) -> (b, m + 4, d).

        `picture`: (b or 1, clip_dim), what CLIP sees in it; None for the negative prompt: zeros, as in diffusers.
        """
        projection = self.image_proj["proj"]
        seen = torch.zeros(1, projection.in_features) if picture is None else picture
        tokens = projection(seen.to(projection.weight).expand(len(context), -1))
        tokens = self.image_proj["norm"](rearrange(tokens, "b (tokens d) -> b tokens d", tokens=TOKENS))
        return torch.cat([context, tokens.to(context.dtype)], dim=1)

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Goes before and behind each cross-attention."""
        for own, layer in zip(self.ip_adapter.values(), cross_attentions(model.unet)):
            second = SecondAttention(self, own["to_k_ip"], own["to_v_ip"], model.tokenizer.model_max_length)
            yield layer.register_forward_pre_hook(second.take).remove
            layer.after.append(second.add)
            yield partial(layer.after.remove, second.add)


class SecondAttention:
    """Takes the picture's tokens off a context, and attends to them with the queries that attend to the text."""

    def __init__(self, adapter: IPAdapter, to_k: nn.Linear, to_v: nn.Linear, longest: int):
        self.adapter, self.to_k, self.to_v, self.longest = adapter, to_k, to_v, longest
        self.tokens: Tensor | None = None

    def take(self, layer: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """x and the text alone; a context that is no longer than a text has no picture."""
        x, context = inputs
        # Contiguous, as diffusers has them: a slice goes through another matrix product, which may round otherwise.
        self.tokens = context[:, -TOKENS:].contiguous() if context.shape[1] > self.longest else None
        return (x, context) if self.tokens is None else (x, context[:, :-TOKENS])

    def add(self, q: Tensor, attended: Tensor) -> Tensor:
        """attended + scale · attend(q, k_picture, v_picture), (b, heads, n, d)."""
        if self.adapter.scale == 0 or self.tokens is None:
            return attended
        both = (own(self.tokens.to(own.weight.dtype)).to(q.dtype) for own in (self.to_k, self.to_v))
        k, v = (rearrange(x, "b m (heads d) -> b heads m d", heads=q.shape[1]) for x in both)
        return attended + self.adapter.scale * F.scaled_dot_product_attention(q, k, v)


def cross_attentions(unet: UNet) -> list[nn.Module]:
    """In the order in which the original counts them: of the left half, of the right half, of the middle."""
    blocks = (unet.down_blocks, unet.up_blocks, unet.mid_block)
    return [layer for block in blocks for name, layer in block.named_modules() if name.endswith(".attn2")]


def load_ip_adapter(model: StableDiffusion, path: str | os.PathLike[str], scale: float = 1.0) -> IPAdapter:
    """An adapter from a file as h94/IP-Adapter has them, `.safetensors` or `.bin`; in the model's dtype, frozen.

    Raises FileNotFoundError, ValueError: no such file, a damaged one, another model's, or another kind of adapter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such IP-Adapter; expected a file such as ip-adapter_sd15.safetensors")
    tensors = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    tensors = tensors if isinstance(tensors, dict) else {}
    if all(isinstance(group, dict) for group in tensors.values()):  # the original's .bin
        tensors = {f"{name}.{key}": tensor for name, group in tensors.items() for key, tensor in group.items()}
    known = [kind for key, kind in VARIANTS.items() if any(str(k).startswith(f"image_proj.{key}") for k in tensors)]
    if known or not isinstance(weight := tensors.get("image_proj.proj.weight"), Tensor) or weight.ndim != 2:
        what = f"an IP-Adapter {known[0]}" if known else "no IP-Adapter"
        raise ValueError(f"{path} is {what}; minti reads the plain kind only, such as ip-adapter_sd15.safetensors")
    check_finite(tensors, f"{path} is damaged; fetch it again")
    make = lambda: IPAdapter(model.unet, weight.shape[1], scale)  # noqa: E731
    return load_network(make, path, model.device, model.dtype, tensors=tensors)


def load_image_encoder(source: str, device: torch.device) -> Callable[[Image.Image], Tensor]:
    """A CLIP image encoder for an IP-Adapter, a folder or hub id ("h94/IP-Adapter/models/image_encoder" for SD v1.4's):
    an image, resized, cropped and normalized as in diffusers, to its embedding, (1, clip_dim). Raises OSError."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    parts = [source] if Path(source).exists() else source.split("/")
    inside = {"subfolder": "/".join(parts[2:])} if len(parts) > 2 else {}
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained("/".join(parts[:2]), use_safetensors=True, **inside)
    except (OSError, ValueError) as error:
        reason = shortened(one_line(error))
        raise OSError(f"cannot reach the image encoder {shortened(source)} ({reason}); name its folder") from None
    size, encoder = encoder.config.image_size, encoder.to(device).eval()
    processor = CLIPImageProcessor(size=size, crop_size=size)

    @torch.no_grad()
    def encode(image: Image.Image) -> Tensor:
        return encoder(processor(image, return_tensors="pt").pixel_values.to(device)).image_embeds

    return encode


def save_ip_adapter(adapter: IPAdapter, path: str | os.PathLike[str]) -> None:
    """Writes a file that diffusers reads too. Raises ValueError, OSError: not finite, or it cannot be written."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}
    check_finite(tensors, f"{path} is not written; try a lower learning rate")
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def check_finite(tensors: dict[str, Tensor], otherwise: str) -> None:
    """Raises ValueError: something is no tensor of finite numbers; names the first."""
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{shortened(str(key))} of the IP-Adapter is no tensor by its name: {otherwise}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{shortened(str(key))} of the IP-Adapter has numbers that are not finite: {otherwise}")
