"""`StableDiffusion`: the loaded parts together, with pictures to latents and back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from minti import text, weights
from minti.noise import Generators
from minti.scheduler import NoiseScheduler
from minti.unet import UNet
from minti.vae import VAE, DiagonalGaussian

# The bundled model stands beside the package in the repository.
TOYBOX = Path(__file__).resolve().parent.parent / "weights" / "toybox"


@dataclass
class StableDiffusion:
    """A text-to-image latent diffusion model: five parts and nothing else.

    The scaling between the VAE's latents and those that the UNet sees happens here (`sample_latents`, `decode`) and
    nowhere else.
    """

    unet: UNet
    vae: VAE
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: NoiseScheduler

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = TOYBOX,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableDiffusion:
        """Loads a model folder in the Hugging Face layout.

        Args:
            source: a folder with `unet/`, `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`; the bundled toybox,
                or SD v1.4.
            device, dtype: where and how the weights are kept.

        Raises:
            FileNotFoundError: the folder or one of its parts is missing.
            ValueError: a part is damaged or of another architecture; the message names the file and the key.
        """
        folder, device = Path(source), torch.device(device)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; expected a model in the layout of SD v1.4")
        parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        missing = [part for part in parts if not (folder / part).is_dir()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; a model folder holds {', '.join(parts)}")
        return cls(
            unet=weights.load_unet(folder / "unet", dtype, device),
            vae=weights.load_vae(folder / "vae", dtype, device),
            text_encoder=weights.load_text_encoder(folder / "text_encoder", dtype, device),
            tokenizer=weights.load_tokenizer(folder / "tokenizer"),
            scheduler=weights.load_scheduler(folder / "scheduler"),
        )

    @property
    def resolution(self) -> int:
        """The size of the pictures that the model was trained on, in pixels (512 for SD v1.4)."""
        return self.unet.config.sample_size * self.vae.config.factor

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's weights."""
        return self.unet.conv_in.weight.dtype

    def encode_prompt(self, prompts: str | list[str]) -> Tensor:
        """Prompts to context, (b, n, d). Placeholders of several vectors are expanded; too long prompts are cut, with a
        warning."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return text.encode(text.tokenize(prompts, self.tokenizer), self.text_encoder)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pictures (b, 3, H, W) in [-1, 1] to the VAE's distribution over *unscaled* latents."""
        return self.vae.encode(pixels.to(self.device, self.dtype))

    def sample_latents(self, posterior: DiagonalGaussian, generator: Generators = None) -> Tensor:
        """A draw from what the encoder says, scaled as the UNet expects: (b, c, h, w)."""
        return posterior.sample(generator) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) to pictures (b, 3, H, W), about [-1, 1] but not clamped."""
        return self.vae.decode(latents / self.vae.config.scaling_factor)
