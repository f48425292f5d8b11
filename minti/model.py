"""`StableDiffusion`: the loaded parts together, with pictures to latents and back."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from minti.checkpoints import hub
from minti.checkpoints.export import save_folder
from minti.checkpoints.folder import load_folder
from minti.checkpoints.rules import check_parts
from minti.checkpoints.single_file import SCHEDULER_CONFIG, load_single_file, tokenizer_beside
from minti.checkpoints.tokenizer import load_tokenizer
from minti.defaults import ModelDefaults
from minti.diffusion.scheduler import NoiseScheduler
from minti.networks.unet import UNet
from minti.networks.vae import VAE, DiagonalGaussian
from minti.text import encode, name_word, tokenize

# The bundled model stands beside the package in a clone, and inside it once installed.
PACKAGE = Path(__file__).resolve().parent
TOYBOX = PACKAGE / "toybox" if (PACKAGE / "toybox").is_dir() else PACKAGE.parent / "weights" / "toybox"

QUERIES_AND_KEYS = r"\b(to_[qk]|[qk]_proj)\."
OVERFLOWN = "the weights are finite, so they have overflowed; try bfloat16 or float32"


@dataclass
class StableDiffusion:
    """A text-to-image latent diffusion model: five parts, and what suits them (lecture notes `002`, 7.4 and 17).

    The scaling between the VAE's latents and those that the UNet sees happens here (`scale`, `decode`) and nowhere
    else.

    Attributes:
        words: the words that were added to its vocabulary, {placeholder: the ids of its tokens}.
    """

    unet: UNet
    vae: VAE
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: NoiseScheduler
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    words: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = TOYBOX,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
        *,
        variant: str | None = None,
        revision: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        ema: bool = False,
    ) -> StableDiffusion:
        """Loads a model of SD v1's architecture: a folder, the original single file, or a hub id.

        Args:
            source: a folder with `unet/`, `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`; a file
                (`.safetensors` or `.ckpt`) of the original release; or an id on the hub, such as
                "CompVis/stable-diffusion-v1-4".
            device, dtype: where and how the weights are kept; dtype None keeps the files' own.
            variant: of a folder or hub id: "fp16" for files in half precision.
            revision: of a hub id: a branch, tag or commit.
            tokenizer: for a single file, the folder of the CLIP tokenizer; when absent, a folder `tokenizer` beside the
                file, or else the hub's.
            ema: of a single file: take the averaged copy of the UNet.

        Raises:
            OSError: the source or one of its parts is missing or cannot be fetched.
            ValueError: a part is damaged or of another architecture; the message names the file and the key.
        """
        path, device = Path(source), torch.device(device)
        if path.is_file():
            parts = load_single_file(path, dtype, device, ema)
            parts += (load_tokenizer(tokenizer_beside(path, tokenizer)), NoiseScheduler(SCHEDULER_CONFIG))
        else:
            parts = load_folder(hub.folder_of(source, revision, variant), dtype, device, variant)
        check_parts(*parts[:4])
        return cls(*parts)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder that `from_pretrained` and diffusers open, without the words that were added.

        Raises OSError: it cannot be written, or is not empty.
        """
        parts = (self.unet, self.vae, self.text_encoder, self.tokenizer, self.scheduler, self.defaults)
        save_folder(Path(folder), *parts)

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

    @property
    def fingerprint(self) -> str:
        """Tells models apart, by up to 64 numbers of every tensor; learned words do not count."""
        digest = hashlib.sha256(str(self.scheduler.config).encode())
        for part in (self.unet, self.vae, self.text_encoder):
            for name, tensor in part.state_dict().items():
                if "token_embedding" in name:
                    tensor = tensor[: self.tokenizer.vocab_size]
                some = tensor.flatten()[:: max(1, tensor.numel() // 64)]
                digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenize(self, prompts: str | Sequence[str]) -> Tensor:
        """Prompts to token ids, (b, m) int64; too long ones are cut, with a warning."""
        return tokenize([prompts] if isinstance(prompts, str) else prompts, self.tokenizer, self.words)

    def encode_prompt(self, prompts: str | Sequence[str]) -> Tensor:
        """Prompts to context, (b, m, d); (b, 77, 768) in SD v1.4."""
        return encode(self.tokenize(prompts), self.text_encoder)

    @torch.no_grad()
    def add_word(self, placeholder: str, rows: Tensor) -> list[int]:
        """Adds a word to the vocabulary, its rows (k, d) at the end of the text encoder's embedding.

        Returns the ids of its tokens, consecutive. Raises ValueError: it cannot be a new word; see
        `text.check_new_placeholder`.
        """
        ids = self.words[placeholder] = name_word(self.tokenizer, placeholder, len(rows))
        old = self.text_encoder.get_input_embeddings().weight
        # mean_resizing would draw the new rows from the covariance of all the old ones: slow, and overwritten at once.
        self.text_encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        weight = self.text_encoder.get_input_embeddings().weight
        weight[ids] = rows.to(weight)
        weight.requires_grad_(old.requires_grad)
        return ids

    def freeze(self, checkpointing: bool = False) -> None:
        """Nothing in it is trainable from now on; see `UNet.set_checkpointing` for a gradient's way through it."""
        for weight in self.trainable():
            weight.requires_grad_(False)
        self.unet.set_checkpointing(checkpointing)

    def trainable(self) -> list[torch.nn.Parameter]:
        """What is trainable in it."""
        networks = (self.unet, self.vae, self.text_encoder)
        return [weight for network in networks for weight in network.parameters() if weight.requires_grad]

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pictures (b, 3, H, W) in [-1, 1] to the VAE's distribution over *unscaled* latents.

        Raises ValueError: a size that is no multiple of the VAE's factor; what comes out is not finite.
        """
        moments = self.vae.moments(pixels.to(self.device, self.dtype))
        self.check_finite("the latents", moments)
        return DiagonalGaussian.from_moments(moments)

    def scale(self, latents: Tensor) -> Tensor:
        """The VAE's latents, of any shape, to those that the UNet sees."""
        return latents * self.vae.config.scaling_factor

    def latents_shape(
        self, batch: int, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """The latents' shape for `batch` pictures of a size in pixels, the model's own when absent: (b, c, h, w).

        Raises ValueError: a size that is no multiple of the VAE's factor.
        """
        factor, native = self.vae.config.factor, self.resolution
        height, width = native if height is None else height, native if width is None else width
        if height % factor or width % factor or height <= 0 or width <= 0:
            raise ValueError(f"{height} x {width} pixels: height and width must be multiples of {factor}")
        return (batch, self.unet.config.in_channels, height // factor, width // factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) to pictures (b, 3, H, W), about [-1, 1] but not clamped.

        Large batches are decoded in slices of two million pixels, eight pictures of 512 x 512, to bound the memory.

        Raises ValueError: what comes out is not finite.
        """
        pixels = latents.shape[-2] * latents.shape[-1] * self.vae.config.factor**2
        slices = (latents / self.vae.config.scaling_factor).split(max(1, 2**21 // pixels))
        pictures = torch.cat([self.vae.decode(part) for part in slices])
        self.check_finite("the pictures", pictures)
        return pictures

    def check_finite(self, what: str, result: Tensor, otherwise: str = OVERFLOWN) -> None:
        """Refuses a result that is not finite, and says which weight is to blame, or, where none is, why `otherwise`.

        Fused attention may take scores that are no numbers for masked ones, and go on with zeros: so queries' and keys'
        weights, a twentieth of all, are looked at also where the result is finite.

        Raises ValueError: a number of `result`, or of those weights, is NaN or infinite.
        """
        culprit, finite = self.not_finite(QUERIES_AND_KEYS), _finite(result)
        if culprit or not finite:
            culprit = culprit or self.not_finite()
            why = f"so has {culprit}; fetch the file again, or use another" if culprit else otherwise
            raise ValueError(f"{what} have numbers that are not finite: {why}")

    def not_finite(self, among: str = "") -> str | None:
        """The first weight with a number that is NaN or infinite, such as "unet: conv_in.weight"; None without one.

        Asked where there is a result, and not while loading: who looks at all weights there reads the files twice.

        `among`: only those in whose name this pattern is found.
        """
        for part in ("unet", "vae", "text_encoder"):
            for name, weight in getattr(self, part).named_parameters():
                if re.search(among, name) and not _finite(weight):
                    return f"{part}: {name}"
        return None


def _finite(tensor: Tensor) -> bool:
    """The least and the greatest tell: both are NaN where one number is; and unlike `isfinite` they take no memory."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.detach().aminmax()).isfinite().all())
