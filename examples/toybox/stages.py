"""The five training stages of the toybox."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTokenizer

import minti
from data import build_tokenizer, draw_captions, draw_near_misses, scene_of, tokenize
from export import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG, special_ids
from loop import batches, save_atomically, train_stage
from minti.configs import parse_config
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import from_bytes, to_pil
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig
from networks import Judge, ToyCLIP

LOOK = (
    "a photo of a red star with a blue stripe on a teal background",
    "a photo of a big green heart with a white spot on a sand background",
    "a sketch of a triangle",
    "a pixel art picture of a yellow circle with a pink side",
    "a cartoon of a small pink square with a green half on the left",
    "a photo of a red cross next to a blue moon",
)


def train_clip(folder: Path, pictures: Tensor, steps: int, device: torch.device) -> ToyCLIP:
    """A tiny CLIP (arXiv 2103.00020): pictures and captions that belong together point the same way.

    Beside the captions of the other pictures each picture gets a near miss (as in arXiv 2210.01936): among random
    captions the shape and the main colour mostly suffice, and the encoder would learn no more.
    """
    tokenizer = build_tokenizer(folder / "tokenizer")
    clip = ToyCLIP(CLIPTextConfig(**TEXT_CONFIG, **special_ids(tokenizer))).to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(pictures), 192, step)
        true, false = draw_near_misses(indices, step)
        # The text model is causal: what is padded after the end of a caption does not change its summary.
        input_ids = tokenize(tokenizer, true + false, padding="longest")
        with torch.autocast(device.type, torch.bfloat16):
            logits = clip(from_bytes(pictures[indices]).to(device), input_ids.to(device)).float()
        no_miss = torch.tensor([text == "" for text in false], device=device)
        logits = torch.cat([logits[:, : len(true)], logits[:, len(true) :].masked_fill(no_miss, -torch.inf)], dim=1)
        return contrastive_loss(logits)

    train_stage("clip", folder, clip, loss_fn, steps, learning_rate=1e-3, ema_decay=0.99)
    return clip


def contrastive_loss(logits: Tensor) -> Tensor:
    """CLIP's loss (arXiv 2103.00020, figure 3): a picture is to find its caption, and a caption its picture.

    `logits`: scaled similarities of b pictures, (b, b + m): of the b captions in their order, then of m that belong to
    none of them. Returns ().
    """
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits[:, : len(logits)].T, targets)) / 2


def train_vae(folder: Path, pictures: Tensor, steps: int, device: torch.device) -> VAE:
    """The VAE learns on random 32 x 32 crops, so that group norm cannot hide the colours of the rest of the picture."""
    vae = VAE(parse_config(VAEConfig, VAE_CONFIG)).to(device)
    kl_weight = 5e-4

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pictures), (12,), generator=generator)
        corners = torch.randint(33, (12, 2), generator=generator).tolist()
        crops = torch.stack([pictures[i, :, y : y + 32, x : x + 32] for i, (y, x) in zip(chosen.tolist(), corners)])
        pixels = from_bytes(crops).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            encoded = vae.encode(pixels)
            decoded = vae.decode(encoded.sample(generator)).float()
        latents = encoded.mean.numel() / len(pixels)
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + kl_weight * encoded.kl().mean() / latents

    @torch.no_grad()
    def look(vae: VAE) -> None:
        pixels = from_bytes(pictures[:16]).to(device)
        both = to_pil(torch.cat([pixels, vae.decode(vae.encode(pixels).mean)]))
        save_png(grid(both, columns=16), folder / "vae.png")

    train_stage("vae", folder, vae, loss_fn, steps, learning_rate=2e-3, ema_decay=0.999, look=look)
    return vae


def polish_decoder(folder: Path, vae: VAE, pictures: Tensor, steps: int, device: torch.device) -> None:
    """The decoder gets used to whole pictures; the encoder, and so the latents that the UNet knows, stay."""
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        pixels = from_bytes(pictures[torch.randint(len(pictures), (4,), generator=generator)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = vae.decode(vae.encode(pixels).sample(generator)).float()
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)

    train_stage("decoder", folder, decoder, loss_fn, steps, learning_rate=1e-3, ema_decay=0.998)


@torch.no_grad()
def encode_pictures(path: Path, vae: VAE, pictures: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of all latents, (count, 8, 16, 16) float16 each; kept in a file.

    A file of other pictures, or of another encoder, such as a trial run's, is written anew.
    """
    fingerprint = fingerprint_of(vae, pictures)
    kept = torch.load(path, weights_only=True) if path.exists() else None
    if not isinstance(kept, dict) or kept["fingerprint"] != fingerprint:
        means, stds = [], []
        for chunk in tqdm(pictures.split(100), desc="latents", mininterval=30):
            with torch.autocast(device.type, torch.bfloat16):
                encoded = vae.encode(from_bytes(chunk).to(device))
            means.append(encoded.mean.half().cpu())
            stds.append(encoded.std.half().cpu())
        kept = {"fingerprint": fingerprint, "means": torch.cat(means), "stds": torch.cat(stds)}
        save_atomically(kept, path)
    return kept["means"], kept["stds"]


def fingerprint_of(vae: VAE, pictures: Tensor) -> str:
    """Tells pictures, and what the encoder makes of them, from others."""
    digest = hashlib.sha256(str(tuple(pictures.shape)).encode() + pictures.numpy().tobytes())
    for name, tensor in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def train_unet(
    folder: Path, vae: VAE, clip: ToyCLIP, pictures: Tensor, steps: int, device: torch.device
) -> tuple[UNet, float]:
    """The denoiser on scaled latents; returns it and the VAE's scaling factor."""
    tokenizer, text_model = CLIPTokenizer.from_pretrained(folder / "tokenizer"), clip.text_model.eval()
    means, stds = encode_pictures(folder / "latents.pt", vae, pictures, device)
    scaling_factor = 1 / means.float().std().item()
    scheduler = NoiseScheduler(parse_config(SchedulerConfig, SCHEDULER_CONFIG))
    signal_to_noise = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    unet = UNet(parse_config(UNetConfig, UNET_CONFIG)).to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(means), 32, step)
        mean, std = means[indices].float(), stds[indices].float()
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        # A prompt matters most between 200 and 650: below, the noisy picture itself tells what it shows, and above,
        # hardly more than the background's colour is decided.
        timesteps = torch.randint(700, (len(latents),), generator=generator)
        timesteps[::2] = torch.randint(200, 650, timesteps[::2].shape, generator=generator)
        timesteps[1::16] = torch.randint(700, 1000, timesteps[1::16].shape, generator=generator)
        input_ids = tokenize(tokenizer, draw_captions(indices, step, drop=0.08))
        with torch.no_grad():
            context = text_model(input_ids.to(device)).last_hidden_state
        noisy = scheduler.add_noise(latents, noise, timesteps).to(device)
        # Attention by plain matrix products: for so few tokens, backwards, twice as fast as the fused kernel on a CPU.
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            prediction = unet(noisy, timesteps.to(device), context)
        # The loss on the velocity is snr + 1 times the loss on x_0 (arXiv 2202.00512); min-SNR with gamma = 5 (arXiv
        # 2303.09556) lets the nearly clean pictures, which are easy, count less.
        snr = signal_to_noise[timesteps]
        weights = (snr.clamp(max=5) + 0.2) / (snr + 1)
        errors = (prediction.float() - scheduler.target(latents, noise, timesteps).to(device)).square()
        return (weights.to(device) * errors.mean(dim=(1, 2, 3))).mean()

    def look(unet: UNet) -> None:
        vae.config = replace(vae.config, scaling_factor=scaling_factor)
        model = minti.StableDiffusion(unet, vae.eval(), text_model, tokenizer, scheduler)
        pictures = minti.sample(model, LOOK, num_inference_steps=20, sampler="ddim", guidance_scale=4.0)
        save_png(grid(pictures, columns=len(LOOK)), folder / "unet.png")

    train_stage("unet", folder, unet, loss_fn, steps, learning_rate=1e-3, ema_decay=0.9995, look=look)
    return unet, scaling_factor


def train_judge(folder: Path, pictures: Tensor, steps: int, device: torch.device) -> Judge:
    """The classifier that measures, on the world's own pictures, a little softened and noisy."""
    judge = Judge().to(device)
    labels = [judge.labels(scene_of(i)) for i in range(len(pictures))]
    answers = {name: torch.tensor([label[name] for label in labels]) for name in judge.answers}

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(pictures), 64, step)
        pixels = from_bytes(pictures[indices]).to(device)
        # Shifted by up to three pixels: unshifted, fifty thousand pictures are soon known by heart.
        x, y = torch.randint(7, (2,), generator=generator).tolist()
        pixels = F.pad(pixels, (3, 3, 3, 3), mode="replicate")[..., y : y + 64, x : x + 64]
        soft = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        blur = 0.6 * torch.rand(len(pixels), 1, 1, 1, generator=generator)  # drawings are a little soft
        noise = 0.04 * torch.randn(pixels.shape, generator=generator)
        pixels = torch.lerp(pixels, soft, blur.to(device)) + noise.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = judge(pixels)
        losses = [
            F.cross_entropy(logits[name].float(), answer[indices].to(device))
            for name, answer in answers.items()
            if (answer[indices] >= 0).any()
        ]
        return torch.stack(losses).mean()

    train_stage("judge", folder, judge, loss_fn, steps, learning_rate=2e-3, ema_decay=0.995)
    return judge
