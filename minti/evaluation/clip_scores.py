"""CLIP scores of textual inversion: image alignment (CLIP-I) and text alignment (CLIP-T), each between two bounds.

Cosine similarities (arXiv 2208.01618, section 5) of the samples to the training images, and to the prompt without the
learned word. The bounds are the scores of samples with the initializer token in place of the word, and of the training
images: for image alignment the initializer is the floor and the training images are the ceiling, for text alignment
the other way round."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minti.formats.strict import check_tokenizer_files
from minti.images import to_pixels

CLIP_SOURCE = "openai/clip-vit-base-patch32"  # the paper's
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images


class Clip(NamedTuple):
    """CLIP's two encoders, n images or n texts -> (n, d) of length one, and their name. `pixels`: the first for
    (n, 3, h, w) in [-1, 1], with a gradient, for guidance."""

    images: Callable[[Sequence[Image.Image]], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    name: str
    pixels: Callable[[Tensor], Tensor]

    def unlikeness(self, text: str) -> Callable[[Tensor], Tensor]:
        """A loss for `universal_guidance`: 1 - cosine of images, (n, 3, h, w) in [-1, 1], and a text; (n,)."""
        wanted = self.texts([text])[0]
        return lambda images: 1 - self.pixels(images) @ wanted.to(images.device)


def cropped(images: Tensor, size: int) -> Tensor:
    """`to_pixels` for tensors, with a gradient: the middle, (n, 3, h, w) -> (n, 3, size, size)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = images[..., top : top + side, left : left + side]
    return middle if side == size else F.interpolate(middle, (size, size), mode="bicubic", antialias=True)


class Score(NamedTuple):
    """A mean similarity and its two bounds."""

    value: float
    floor: float
    ceiling: float

    @property
    def position(self) -> float | None:
        """0 at the floor, 1 at the ceiling; None where the ceiling is not above the floor by 0.02."""
        room = self.ceiling - self.floor
        return (self.value - self.floor) / room if room > 0.02 else None


def load_clip(source: str = CLIP_SOURCE, device: str | torch.device = "cpu") -> Clip:
    """CLIP from a folder or the hub; safetensors only. Raises OSError: it cannot be reached, or is incomplete."""
    from transformers import CLIPModel, CLIPTokenizer

    try:
        check_tokenizer_files(Path(source))
        model = CLIPModel.from_pretrained(source, use_safetensors=True, attn_implementation="sdpa").to(device).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"cannot reach the CLIP model {source} ({reason}); name a folder that holds one") from None
    model.requires_grad_(False)
    size = model.config.vision_config.image_size
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    def pixels(images: Tensor) -> Tensor:
        normalized = (cropped(images.float(), size) * 0.5 + 0.5 - mean) / std
        return F.normalize(model.visual_projection(model.vision_model(normalized).pooler_output), dim=-1)

    @torch.no_grad()
    def images(batch: Sequence[Image.Image]) -> Tensor:
        return pixels(torch.stack([to_pixels(image, size) for image in batch]).to(device)).cpu()

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        return F.normalize(model.text_projection(model.text_model(**ids).pooler_output), dim=-1).cpu()

    return Clip(images, texts, source, pixels)


def without_words(template: str) -> str:
    """A template without its word: "a sketch of a {} on grey" -> "a sketch of a on grey"."""
    return re.sub(r"\s+", " ", template.replace("{}", "")).strip()


def mean_similarity(a: Tensor, b: Tensor) -> float:
    """The mean cosine of all pairs of (n, d) and (k, d), of length one."""
    return (a @ b.T).mean().item()


def among_themselves(a: Tensor) -> float:
    """The mean cosine of all pairs of different rows of (n, d), of length one; 1 for a single row."""
    n = len(a)
    return ((a @ a.T).sum() - n).item() / (n * (n - 1)) if n > 1 else 1.0


def likeness(samples: Tensor, initial: Tensor, training: Tensor) -> Score:
    """Image alignment (CLIP-I), from (n, d) of the samples, those with the initializer token, the training images."""
    return Score(mean_similarity(samples, training), mean_similarity(initial, training), among_themselves(training))


def obedience(samples: Tensor, initial: Tensor, training: Tensor, text: Tensor) -> Score:
    """Text alignment (CLIP-T), from the same and (1, d) of the prompt without the word."""
    return Score(*(mean_similarity(images, text) for images in (samples, training, initial)))
