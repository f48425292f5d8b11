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
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from minti.checkpoints.weights import build, fill, read_pickle, read_tensors
from minti.machine.files import replacing
from minti.machine.messages import shortened
from minti.model import StableDiffusion
from minti.networks.kernels import attention
from minti.networks.unet import UNet
from minti.parts.part import Part

TOKENS = 4
# What else goes by the name, by a tensor that the others lack: all see more in a picture than CLIP's one vector.
VARIANTS = {"perceiver_resampler.proj_in": "FaceID Plus", "latents": "Plus", "proj.3": "Full Face", "proj.0": "FaceID"}


class IPAdapter(Part):
    """The picture's tokens, and keys and values for every cross-attention; named as in h94/IP-Adapter's files.

    Attributes:
        picture: (b or 1, clip_dim), what CLIP sees in a picture for each drawing, or for all; unconditional predictions
            see zeros, as in diffusers (but not where `refresh_every` leaves them out beside several prompts).
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
        self.picture, self.scale, self._tokens = torch.zeros(1, clip_dim, device="cpu"), scale, torch.empty(0)

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

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Sees when the UNet begins, and goes behind each of its cross-attentions."""
        unet = model.unet
        yield unet.conv_in.register_forward_pre_hook(lambda _, inputs: self._see(len(inputs[0]), unet.pictures)).remove
        for own, layer in zip(self.ip_adapter.values(), cross_attentions(unet)):
            further = partial(self._attend, own["to_k_ip"], own["to_v_ip"])
            layer.after.append(further)
            yield partial(layer.after.remove, further)

    def _see(self, rows: int, pictures: int | None) -> None:
        """The tokens of a batch of the UNet, (rows, 4, d); see `UNet.pictures`."""
        pictures, projection = pictures or rows, self.image_proj["proj"]
        if len(self.picture) not in (1, pictures):
            raise ValueError(f"{len(self.picture)} pictures as prompts of {pictures} drawings; give 1, or one each")
        seen = self.picture.to(projection.weight).expand(pictures, -1)
        if rows > pictures:
            seen = torch.cat([torch.zeros_like(seen), *[seen] * (rows // pictures - 1)])
        tokens = rearrange(projection(seen), "b (tokens d) -> b tokens d", tokens=TOKENS)
        self._tokens = self.image_proj["norm"](tokens)

    def _attend(self, to_k: nn.Linear, to_v: nn.Linear, q: Tensor, attended: Tensor) -> Tensor:
        if self.scale == 0:
            return attended
        both = (own(self._tokens).to(q.dtype) for own in (to_k, to_v))
        k, v = (rearrange(x, "b m (heads d) -> b heads m d", heads=q.shape[1]) for x in both)
        return attended + self.scale * attention(q, k, v)


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
    adapter = build(lambda: IPAdapter(model.unet, weight.shape[1], scale), path)
    return fill(adapter, tensors, path, model.dtype, model.device)


def save_ip_adapter(adapter: IPAdapter, path: str | os.PathLike[str]) -> None:
    """Writes a file that diffusers reads too. Raises ValueError, OSError: not finite, or it cannot be written."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}
    check_finite(tensors, f"{path} is not written; try a lower learning rate")
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def check_finite(tensors: dict[str, Tensor], otherwise: str) -> None:
    """Raises ValueError: something is no tensor of finite numbers; names the first."""
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.float().isfinite().all():
            raise ValueError(f"{shortened(str(key))} of the IP-Adapter has numbers that are not finite: {otherwise}")
