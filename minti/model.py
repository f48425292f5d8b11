"""`StableDiffusion`: the five parts of a text-to-image latent diffusion model, and images to latents and back."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from minti.configs import ModelDefaults
from minti.loading import load_folder
from minti.scheduler import NoiseScheduler
from minti.text import add_tokens, tokenize
from minti.unet import UNet
from minti.utils import check, plugin
from minti.vae import VAE, DiagonalGaussian

# The bundled model stands beside the package in a clone, and inside it once installed.
PACKAGE = Path(__file__).resolve().parent
TOYBOX = PACKAGE / "toybox" if (PACKAGE / "toybox").is_dir() else PACKAGE.parent / "weights" / "toybox"


@dataclass
class StableDiffusion:
    """A text-to-image latent diffusion model (`002`, 7.4 and 17). The VAE's latents are scaled here, nowhere else."""

    unet: UNet
    vae: VAE
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: NoiseScheduler
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    words: dict[str, list[int]] = field(default_factory=dict)  # that were added: {placeholder: ids of its tokens}
    learning: dict[str, Any] = field(default_factory=dict)  # those of them learned here: {placeholder: adapter}

    def __post_init__(self) -> None:
        self.original_tokenizer: CLIPTokenizer | None = None  # from before the first word was added
        self.words |= plugin("minti.personalization.vocabulary:words_of", lambda tokenizer: {})(self.tokenizer)
        if self.dtype == torch.bfloat16 and self.device.type == "cpu":
            plugin("minti.speed.bfloat16:accelerate")(self.unet, self.vae)

    @classmethod
    def from_pretrained(
        cls, source: Any = TOYBOX, device: Any = "cpu", dtype: torch.dtype | None = torch.float32, **options: Any
    ) -> "StableDiffusion":
        """Loads a model of SD v1's architecture: a folder with `unet/`, `vae/`, `text_encoder/`, `tokenizer/` and
        `scheduler/`, the original single file (`.safetensors`, `.ckpt`), or a Hugging Face hub id.
        dtype: None keeps the files' own. options: `variant`, "fp16" for half precision; of a hub id `revision`; of a
        single file `tokenizer`, a folder, and `ema`, whether to take the averaged UNet. Raises OSError, ValueError."""
        path, device = Path(source), torch.device(device)
        if path.is_dir() and not options:
            parts = load_folder(path, device, dtype)
        else:
            from minti.formats.sources import load_source

            parts = load_source(source, device, dtype, **options)
        check("formats.strict:check_parts", parts["unet"], parts["vae"], parts["text_encoder"], parts["tokenizer"])
        return cls(**parts)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder that `from_pretrained` and diffusers open. Raises OSError: it is not empty."""
        plugin("minti.formats.export:save_folder")(self, Path(folder))

    @property
    def resolution(self) -> int:
        """The size of the images that the model was trained on, in pixels (512 for SD v1.4)."""
        return self.unet.config.sample_size * self.vae.config.factor

    device = property(lambda self: self.unet.conv_in.weight.device)
    dtype = property(lambda self: self.unet.conv_in.weight.dtype)

    def tokenize(self, prompts: str | Sequence[str]) -> Tensor:
        """Prompts to token ids, (b, m) int64; too long ones are cut, with a warning."""
        return tokenize([prompts] if isinstance(prompts, str) else prompts, self.tokenizer, self.words)

    def encode_prompt(self, prompts: str | Sequence[str], **options: Any) -> Tensor:
        """Prompts to context, the text encoder's last hidden states, (b, m, d); (b, 77, 768) in SD v1.4.
        options: `weights`, `long_prompts`, `clip_skip`, see `minti.prompts.encoding`."""
        if options:
            return plugin("minti.prompts.encoding:encode")(self, prompts, **options)
        return self.text_encoder(self.tokenize(prompts).to(self.text_encoder.device)).last_hidden_state

    @torch.no_grad()
    def add_word(self, placeholder: str, vectors: Tensor) -> list[int]:
        """Adds a word with its embedding vectors (k, d) to the vocabulary; the ids of its tokens."""
        self.original_tokenizer = self.original_tokenizer or copy.deepcopy(self.tokenizer)
        layer = self.text_encoder.get_input_embeddings()
        rows = torch.cat([layer.weight[: len(self.tokenizer)], vectors.to(layer.weight)])
        ids = self.words[placeholder] = add_tokens(self.tokenizer, placeholder, len(vectors))
        layer.weight.data = rows  # not by resize_token_embeddings, which draws random numbers
        layer.num_embeddings = self.text_encoder.config.vocab_size = len(layer.weight)
        return ids

    def freeze(self, checkpointing: bool | None = None) -> None:
        """Nothing in it is trainable from now on; `checkpointing`: gradient checkpointing, None: as it is."""
        for network in (self.unet, self.vae, self.text_encoder):
            network.requires_grad_(False)
        if checkpointing is not None:
            self.unet.gradient_checkpointing(checkpointing)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Images (b, 3, H, W) in [-1, 1] to the VAE's distributions over *unscaled* latents."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        check("runs.checks:finite", self, "the latents", encoded.mean + encoded.logvar)
        return encoded

    def scale(self, latents: Tensor) -> Tensor:
        """The VAE's latents, of any shape, to those that the UNet sees."""
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) to images (b, 3, H, W), not clamped, in slices of two million pixels."""
        pixels = latents.shape[-2] * latents.shape[-1] * self.vae.config.factor**2
        slices = (latents / self.vae.config.scaling_factor).split(max(1, 2**21 // pixels))
        images = torch.cat([self.vae.decode(part) for part in slices])
        check("runs.checks:finite", self, "the images", images)
        return images

    def latents_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """The latents' shape, (b, c, h, w), for `batch` images of a size in pixels, the model's own when absent."""
        factor, native = self.vae.config.factor, self.resolution
        height, width = native if height is None else height, native if width is None else width
        if height % factor or width % factor or height <= 0 or width <= 0:
            raise ValueError(f"{height} x {width} pixels: height and width must be multiples of {factor}")
        return (batch, self.unet.config.in_channels, height // factor, width // factor)
