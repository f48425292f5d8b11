"""The five training stages of the toybox: CLIP, VAE, its decoder, UNet and judge."""

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
from data import CONTEXT_LENGTH, batches, build_tokenizer, draw_captions, draw_near_misses, scene_of, tokenize
from minti.evaluation.distribution import kl_to_standard_normal
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import from_bytes, to_pil
from minti.runs.files import replacing
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig
from networks import Judge, ToyCLIP
from resumable import train_stage

TEXT_CONFIG = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}
VAE_CONFIG = VAEConfig(latent_channels=8, block_out_channels=(32, 64, 96), layers_per_block=1, norm_num_groups=8)
UNET_CONFIG = UNetConfig(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    block_out_channels=(64, 128, 128),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=128,
    attention_head_dim=4,
    norm_num_groups=16,
)
# The schedule of the DDPM paper (arXiv 2006.11239), which ends in almost pure noise, and velocity prediction. At the
# last step of SD v1.4's schedule so small an image still shows the colour of its background; a model that has seen it
# there ignores the prompt, and samples the background that the initial noise suggests (arXiv 2305.08891).
SCHEDULER_CONFIG = SchedulerConfig(
    beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction", steps_offset=1
)
LOOK = (
    "a photo of a red star with a blue stripe on a teal background",
    "a photo of a big green heart with a white spot on a sand background",
    "a sketch of a triangle",
    "a pixel art picture of a yellow circle with a pink side",
    "a cartoon of a small pink square with a green half on the left",
    "a photo of a red cross next to a blue moon",
)


def train_clip(folder: Path, images: Tensor, steps: int, device: torch.device) -> ToyCLIP:
    """A tiny CLIP, trained by contrastive learning on images and their captions (arXiv 2103.00020).

    Beside the captions of the other images each image gets a hard negative, a near miss (as in arXiv 2210.01936): among
    random captions the shape and the main colour mostly suffice, and the encoder would learn no more.
    """
    tokenizer = build_tokenizer(folder / "tokenizer")
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    clip = ToyCLIP(CLIPTextConfig(**TEXT_CONFIG, **special, vocab_size=len(tokenizer))).to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(images), 192, step)
        true, false = draw_near_misses(indices, step)
        # The text model is causal: padding after the end of a caption does not change its summary.
        input_ids = tokenize(tokenizer, true + false, padding="longest")
        with torch.autocast(device.type, torch.bfloat16):
            logits = clip(from_bytes(images[indices]).to(device), input_ids.to(device)).float()
        no_miss = torch.tensor([text == "" for text in false], device=device)
        logits = torch.cat([logits[:, : len(true)], logits[:, len(true) :].masked_fill(no_miss, -torch.inf)], dim=1)
        return contrastive_loss(logits)

    train_stage("clip", folder, clip, loss_fn, steps, learning_rate=1e-3, ema_decay=0.99)
    return clip


def contrastive_loss(logits: Tensor) -> Tensor:
    """CLIP's contrastive loss (arXiv 2103.00020, figure 3): cross-entropy over captions and over images.

    `logits`: scaled similarities of b images, (b, b + m): to their b captions in the same order, then to m captions of
    none of them. Returns ().
    """
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits[:, : len(logits)].T, targets)) / 2


def train_vae(folder: Path, images: Tensor, steps: int, device: torch.device) -> VAE:
    """The VAE, trained on random 32 x 32 crops, so that group norm cannot hide the colours of the rest of the image."""
    vae = VAE(VAE_CONFIG).to(device)
    kl_weight = 5e-4

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (12,), generator=generator)
        corners = torch.randint(33, (12, 2), generator=generator).tolist()
        crops = torch.stack([images[i, :, y : y + 32, x : x + 32] for i, (y, x) in zip(chosen.tolist(), corners)])
        pixels = from_bytes(crops).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            encoded = vae.encode(pixels)
            decoded = vae.decode(encoded.sample(generator)).float()
        latents = encoded.mean[0].numel()
        kl = kl_to_standard_normal(encoded).mean() / latents
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + kl_weight * kl

    @torch.no_grad()
    def look(vae: VAE) -> None:
        pixels = from_bytes(images[:16]).to(device)
        both = to_pil(torch.cat([pixels, vae.decode(vae.encode(pixels).mean)]))
        save_png(grid(both, columns=16), folder / "vae.png")

    train_stage("vae", folder, vae, loss_fn, steps, learning_rate=2e-3, ema_decay=0.999, look=look)
    return vae


def polish_decoder(folder: Path, vae: VAE, images: Tensor, steps: int, device: torch.device) -> None:
    """Fine-tunes the VAE's decoder on whole images; the encoder, and so the UNet's latents, stay as they are."""
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        pixels = from_bytes(images[torch.randint(len(images), (4,), generator=generator)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = vae.decode(vae.encode(pixels).sample(generator)).float()
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)

    train_stage("decoder", folder, decoder, loss_fn, steps, learning_rate=1e-3, ema_decay=0.998)


@torch.no_grad()
def encode_images(path: Path, vae: VAE, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of all latents, (count, 8, 16, 16) float16 each; cached in a file.

    The file is written anew if it is of other images or another encoder, such as a trial run's.
    """
    fingerprint = fingerprint_of(vae, images)
    cached = torch.load(path, weights_only=True) if path.exists() else None
    if not isinstance(cached, dict) or cached["fingerprint"] != fingerprint:
        means, stds = [], []
        for chunk in tqdm(images.split(100), desc="latents", mininterval=30):
            with torch.autocast(device.type, torch.bfloat16):
                encoded = vae.encode(from_bytes(chunk).to(device))
            means.append(encoded.mean.half().cpu())
            stds.append(encoded.std.half().cpu())
        cached = {"fingerprint": fingerprint, "means": torch.cat(means), "stds": torch.cat(stds)}
        with replacing(path) as temporary:
            torch.save(cached, temporary)
    return cached["means"], cached["stds"]


def fingerprint_of(vae: VAE, images: Tensor) -> str:
    """SHA-256 of the images and of the encoder's weights."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode() + images.numpy().tobytes())
    for name, tensor in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def train_unet(
    folder: Path, vae: VAE, clip: ToyCLIP, images: Tensor, steps: int, device: torch.device
) -> minti.StableDiffusion:
    """The UNet, trained on scaled latents with min-SNR weighting; returns the whole model."""
    tokenizer, text_model = CLIPTokenizer.from_pretrained(folder / "tokenizer"), clip.text_model.eval()
    means, stds = encode_images(folder / "latents.pt", vae, images, device)
    vae.config = replace(vae.config, scaling_factor=1 / means.float().std().item())
    scheduler, unet = NoiseScheduler(SCHEDULER_CONFIG), UNet(UNET_CONFIG).to(device)
    signal_to_noise = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    model = minti.StableDiffusion(unet, vae.eval(), text_model, tokenizer, scheduler)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(means), 32, step)
        mean, std = means[indices].float(), stds[indices].float()
        latents = model.scale(mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        # A prompt matters most between 200 and 650: below, the noisy image itself shows its content, and above, hardly
        # more than the colour of the background is decided.
        timesteps = torch.randint(700, (len(latents),), generator=generator)
        timesteps[::2] = torch.randint(200, 650, timesteps[::2].shape, generator=generator)
        timesteps[1::16] = torch.randint(700, 1000, timesteps[1::16].shape, generator=generator)
        input_ids = tokenize(tokenizer, draw_captions(indices, step, drop=0.08))
        with torch.no_grad():
            context = text_model(input_ids.to(device)).last_hidden_state
        noisy = scheduler.add_noise(latents, noise, timesteps).to(device)
        # Attention as plain matrix products: for so few tokens the backward pass is twice as fast on a CPU.
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            prediction = unet(noisy, timesteps.to(device), context)
        # The loss on the velocity is snr + 1 times the loss on x_0 (arXiv 2202.00512); min-SNR with gamma = 5 (arXiv
        # 2303.09556) lowers the weight of nearly clean images, which are easy.
        snr = signal_to_noise[timesteps]
        weights = (snr.clamp(max=5) + 0.2) / (snr + 1)
        errors = (prediction.float() - scheduler.target(latents, noise, timesteps).to(device)).square()
        return (weights.to(device) * errors.mean(dim=(1, 2, 3))).mean()

    def look(unet: UNet) -> None:
        options = {"num_inference_steps": 20, "sampler": "ddim", "guidance_scale": 4.0}
        save_png(grid(minti.sample(replace(model, unet=unet), LOOK, **options), columns=len(LOOK)), folder / "unet.png")

    train_stage("unet", folder, unet, loss_fn, steps, learning_rate=1e-3, ema_decay=0.9995, look=look)
    return model


def train_judge(
    folder: Path,
    images: Tensor,
    steps: int,
    device: torch.device,
    labels: list[dict[str, int]] | None = None,
    half: bool = True,
) -> Judge:
    """The judge, a classifier of images, trained on the world's own, a little blurred and noisy; or with `labels`, as
    of `Judge.labels`, on any other images. `half`: in bfloat16."""
    judge = Judge().to(device)
    labels = labels or [judge.labels(scene_of(i)) for i in range(len(images))]
    answers = {name: torch.tensor([label[name] for label in labels]) for name in judge.answers}

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(images), 64, step)
        pixels = from_bytes(images[indices]).to(device)
        # Shifted by up to three pixels: unshifted, fifty thousand images are soon memorised.
        x, y = torch.randint(7, (2,), generator=generator).tolist()
        pixels = F.pad(pixels, (3, 3, 3, 3), mode="replicate")[..., y : y + 64, x : x + 64]
        soft = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        blur = 0.6 * torch.rand(len(pixels), 1, 1, 1, generator=generator)  # samples are a little soft
        noise = 0.04 * torch.randn(pixels.shape, generator=generator)
        pixels = torch.lerp(pixels, soft, blur.to(device)) + noise.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = judge(pixels)
        losses = [
            F.cross_entropy(logits[name].float(), answer[indices].to(device))
            for name, answer in answers.items()
            if (answer[indices] >= 0).any()
        ]
        return torch.stack(losses).mean()

    train_stage("judge", folder, judge, loss_fn, steps, learning_rate=2e-3, ema_decay=0.995)
    return judge
