"""Is it the thing, and does it obey the rest of the prompt? Two cosine similarities of CLIP, each between two bounds.

"An Image is Worth One Word" (arXiv 2208.01618, section 5): the similarity of drawn pictures to the training pictures,
and of drawn pictures to the prompt without the word. A bare similarity says little, so each comes with what the same
prompt gives when the initializer word stands in the learned word's place, and with what the training pictures give.
For likeness the initializer is the floor and the training pictures among themselves are the ceiling. For obedience it
is the other way round: the training pictures know nothing of the prompt, and a known word does not stand in its way.
"""

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

CLIP_SOURCE = "openai/clip-vit-base-patch32"  # the one that the paper measures with
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures


class Clip(NamedTuple):
    """Two encoders into one space, n pictures or n texts -> (n, d) of length one, and which they are.

    `pixels` is the first once more, of (n, 3, h, w) in [-1, 1] and with a gradient: for guidance, not for scores.
    """

    images: Callable[[Sequence[Image.Image]], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    name: str
    pixels: Callable[[Tensor], Tensor]

    def unlikeness(self, text: str) -> Callable[[Tensor], Tensor]:
        """1 - cosine of pictures, (n, 3, h, w) in [-1, 1], and a text, (n,): what `universal_guidance` goes down."""
        wanted = self.texts([text])[0]
        return lambda pictures: 1 - self.pixels(pictures) @ wanted.to(pictures.device)


def cropped(pictures: Tensor, size: int) -> Tensor:
    """`to_pixels` of pictures that are tensors, with a gradient: the middle, (n, 3, h, w) to (n, 3, size, size)."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = pictures[..., top : top + side, left : left + side]
    return middle if side == size else F.interpolate(middle, (size, size), mode="bicubic", antialias=True)


class Score(NamedTuple):
    """A mean similarity between its two bounds."""

    value: float
    floor: float
    ceiling: float

    @property
    def position(self) -> float | None:
        """0 at the floor, 1 at the ceiling; None where the two are too near to tell (or the wrong way round)."""
        room = self.ceiling - self.floor
        return (self.value - self.floor) / room if room > 0.02 else None


def load_clip(source: str = CLIP_SOURCE, device: str | torch.device = "cpu") -> Clip:
    """CLIP as transformers has it, from a folder or the hub; safetensors only.
    Raises OSError: it cannot be reached, or is incomplete."""
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

    def pixels(pictures: Tensor) -> Tensor:
        normalized = (cropped(pictures.float(), size) * 0.5 + 0.5 - mean) / std
        return F.normalize(model.visual_projection(model.vision_model(normalized).pooler_output), dim=-1)

    @torch.no_grad()
    def images(pictures: Sequence[Image.Image]) -> Tensor:
        return pixels(torch.stack([to_pixels(picture, size) for picture in pictures]).to(device)).cpu()

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        return F.normalize(model.text_projection(model.text_model(**ids).pooler_output), dim=-1).cpu()

    return Clip(images, texts, source, pixels)


def without_words(template: str) -> str:
    """A template without the places for words: "a sketch of a {} on grey" -> "a sketch of a on grey"."""
    return re.sub(r"\s+", " ", template.replace("{}", "")).strip()


def mean_similarity(a: Tensor, b: Tensor) -> float:
    """The mean cosine of all pairs of (n, d) and (k, d), of length one."""
    return (a @ b.T).mean().item()


def among_themselves(a: Tensor) -> float:
    """The mean cosine of all pairs of different rows of (n, d), of length one; 1 for a single row."""
    n = len(a)
    return ((a @ a.T).sum() - n).item() / (n * (n - 1)) if n > 1 else 1.0


def likeness(drawn: Tensor, initial: Tensor, training: Tensor) -> Score:
    """Is it the thing? (n, d) of the drawn pictures, of those with the initializer word, of the training pictures."""
    return Score(mean_similarity(drawn, training), mean_similarity(initial, training), among_themselves(training))


def obedience(drawn: Tensor, initial: Tensor, training: Tensor, text: Tensor) -> Score:
    """Does it obey the rest? As `likeness`, with (1, d) of the prompt without the word."""
    return Score(*(mean_similarity(pictures, text) for pictures in (drawn, training, initial)))
