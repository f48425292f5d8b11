"""Trains the bundled toybox model from nothing, with minti's own networks, scheduler and loss.

    python examples/toybox/train.py --output weights/toybox --work /tmp/toybox-work

Five stages, each resumable: a tiny CLIP (its text half becomes the frozen text encoder), the VAE on random crops, its
decoder on whole pictures, the UNet on the VAE's latents, and the judge, a classifier that measures what is drawn.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTokenizer

from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig
from networks import Judge, ToyCLIP
from stage import batches, train_stage
from world import Scene, caption, draw, random_scene, words

CONTEXT_LENGTH = 32
PICTURES = 50_000  # that the VAE, the CLIP and the judge see
LATENTS = 40_000  # of them, that the UNet sees
STEPS = {"clip": 1_400, "vae": 7_000, "unet": 15_000, "judge": 6_000, "decoder": 2_000}

VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "block_out_channels": [32, 64, 96],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "sample_size": 64,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}
SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
UNET_CONFIG = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}


# --- data -------------------------------------------------------------------------------------------------------------


def scene_of(index: int) -> Scene:
    """The training scene with this number."""
    return random_scene(np.random.default_rng((1, index)))


def picture_of(index: int) -> np.ndarray:
    """Its picture, (3, 64, 64) uint8."""
    picture = draw(scene_of(index), np.random.default_rng((2, index)))
    return (picture * 255).round().astype(np.uint8).transpose(2, 0, 1)


def draw_pictures(count: int) -> Tensor:
    """The first `count` training pictures, (count, 3, 64, 64) uint8."""
    with ProcessPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(picture_of, range(count), chunksize=1000))))


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


# --- stages -----------------------------------------------------------------------------------------------------------


def train_vae(folder: Path, pictures: Tensor, steps: int) -> VAE:
    """The VAE learns on random 32 x 32 crops, so that group norm cannot hide the colours of the rest of the picture."""
    vae = VAE(VAEConfig.from_dict(VAE_CONFIG))
    kl_weight = 5e-4

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pictures), (12,), generator=generator)
        corners = torch.randint(33, (12, 2), generator=generator).tolist()
        crops = torch.stack([pictures[i, :, y : y + 32, x : x + 32] for i, (y, x) in zip(chosen.tolist(), corners)])
        pixels = to_pixels(crops)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels)
            decoded = vae.decode(posterior.sample(generator)).float()
        latents = posterior.mean.numel() / len(pixels)
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + kl_weight * posterior.kl().mean() / latents

    def look() -> None:
        with torch.no_grad():
            pixels = to_pixels(pictures[:16])
            both = torch.cat([pixels, vae.decode(vae.encode(pixels).mean)])
        save_grid(both, folder / "vae.png", columns=16)

    train_stage("vae", folder, vae, loss_fn, steps, learning_rate=2e-3, ema_decay=0.999, look=look)
    return vae


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a CLIP tokenizer for the world's words into `folder`: byte pairs merged until every word is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(words(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]

    # The order of CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens.
    ordered = sorted(letters)
    vocab = ordered + [letter + "</w>" for letter in ordered] + ["".join(pair) for pair in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": vocab[-2], "eos_token": vocab[-1], "pad_token": vocab[-1], "unk_token": vocab[-1]}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "do_lower_case": True},
    )
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], padding: str = "max_length") -> Tensor:
    """Captions to token ids, (b, 32) or, with padding "longest", (b, n)."""
    options = {"padding": padding, "truncation": True, "max_length": CONTEXT_LENGTH, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


def draw_captions(indices: Tensor, step: int, drop: float = 0.0) -> list[str]:
    """A fresh caption for each scene; with probability `drop` an empty one (Ho and Salimans, Algorithm 1)."""
    rng = np.random.default_rng((3, step))
    return ["" if rng.random() < drop else caption(scene_of(i), rng) for i in indices.tolist()]


def train_clip(folder: Path, pictures: Tensor, steps: int) -> ToyCLIP:
    """A tiny CLIP (arXiv 2103.00020): pictures and captions that belong together point the same way."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    clip = ToyCLIP(CLIPTextConfig(**TEXT_CONFIG, **special_ids(tokenizer)))

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(pictures), 192, step)
        # The text model is causal: what is padded after the end of a caption does not change its summary.
        input_ids = tokenize(tokenizer, draw_captions(indices, step), padding="longest")
        with torch.autocast("cpu", torch.bfloat16):
            logits = clip(to_pixels(pictures[indices]), input_ids).float()
        targets = torch.arange(len(indices))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    train_stage("clip", folder, clip, loss_fn, steps, learning_rate=1e-3, ema_decay=0.99)
    return clip


def special_ids(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """What the text encoder's config must know of the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@torch.no_grad()
def encode_pictures(path: Path, vae: VAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of all latents, (count, 8, 16, 16) float16 each; kept in a file."""
    if not path.exists():
        means, stds = [], []
        for chunk in tqdm(pictures.split(100), desc="latents", mininterval=30):
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(to_pixels(chunk))
            means.append(posterior.mean.half())
            stds.append(posterior.std.half())
        torch.save((torch.cat(means), torch.cat(stds)), path)
    return torch.load(path, weights_only=True)


def train_unet(folder: Path, vae: VAE, clip: ToyCLIP, pictures: Tensor, steps: int) -> tuple[UNet, float]:
    """The denoiser on scaled latents; returns it and the VAE's scaling factor."""
    tokenizer, text_model = CLIPTokenizer.from_pretrained(folder / "tokenizer"), clip.text_model.eval()
    means, stds = encode_pictures(folder / "latents.pt", vae, pictures)
    scaling_factor = 1 / means.float().std().item()
    scheduler = NoiseScheduler(SchedulerConfig.from_dict(SCHEDULER_CONFIG))
    signal_to_noise = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    unet = UNet(UNetConfig.from_dict(UNET_CONFIG))

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(means), 32, step)
        mean, std = means[indices].float(), stds[indices].float()
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        # Half of the timesteps come from the noisy half of the schedule, where the prompt matters.
        timesteps = torch.randint(1000, (len(latents),), generator=generator)
        timesteps[::2] = 500 + timesteps[::2] // 2
        with torch.no_grad():
            context = text_model(tokenize(tokenizer, draw_captions(indices, step, drop=0.08))).last_hidden_state
        noisy = scheduler.add_noise(latents, noise, timesteps)
        # Attention by plain matrix products: for so few tokens, backwards, twice as fast as the fused kernel on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            prediction = unet(noisy, timesteps, context)
        # min-SNR weights with gamma = 5 (arXiv 2303.09556): the easy, nearly clean pictures count less. The other end
        # is lifted too: a background's colour is decided where almost all is noise, and there the plain loss on epsilon
        # is snr times the loss on x_0, next to nothing.
        snr = signal_to_noise[timesteps]
        weights = (snr.clamp(max=5) + 0.05) / snr
        return (weights * (prediction.float() - noise).square().mean(dim=(1, 2, 3))).mean()

    train_stage("unet", folder, unet, loss_fn, steps, learning_rate=1e-3, ema_decay=0.9995)
    return unet, scaling_factor


def train_judge(folder: Path, pictures: Tensor, steps: int) -> Judge:
    """The classifier that measures, on the world's own pictures, a little softened and noisy."""
    judge = Judge()
    labels = [judge.labels(scene_of(i)) for i in range(len(pictures))]
    answers = {name: torch.tensor([label[name] for label in labels]) for name in judge.answers}

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        indices = batches(len(pictures), 64, step)
        pixels = to_pixels(pictures[indices])
        soft = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        blur = 0.6 * torch.rand(len(pixels), 1, 1, 1, generator=generator)  # drawings are a little soft
        pixels = torch.lerp(pixels, soft, blur) + 0.04 * torch.randn(pixels.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(pixels)
        losses = [
            F.cross_entropy(logits[name].float(), answer[indices])
            for name, answer in answers.items()
            if (answer[indices] >= 0).any()
        ]
        return torch.stack(losses).mean()

    train_stage("judge", folder, judge, loss_fn, steps, learning_rate=2e-3, ema_decay=0.995)
    return judge


def polish_decoder(folder: Path, vae: VAE, pictures: Tensor, steps: int) -> None:
    """The decoder gets used to whole pictures; the encoder, and so the latents that the UNet knows, stay."""
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        pixels = to_pixels(pictures[torch.randint(len(pictures), (4,), generator=generator)])
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(vae.encode(pixels).sample(generator)).float()
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)

    train_stage("decoder", folder, decoder, loss_fn, steps, learning_rate=1e-3, ema_decay=0.998)


def save_grid(pixels: Tensor, path: Path, columns: int) -> None:
    """Pictures (b, 3, h, w) in [-1, 1], side by side in one file."""
    b, c, h, w = pixels.shape
    rows = pixels.reshape(b // columns, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(-1, columns * w, c)
    Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()).save(path)


def write_json(path: Path, content: dict) -> None:
    """Writes a config file as the release formats it."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def export(folder: Path, clip: ToyCLIP, vae: VAE, unet: UNet, judge: Judge, scaling_factor: float) -> None:
    """Writes the model in the layout of SD v1.4, weights in half precision; beside it, what measures it."""

    def save(name: str, module: nn.Module | dict[str, Tensor], config: dict | None = None, prefix: str = "") -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = module if isinstance(module, dict) else module.state_dict()
        halves = {prefix + k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(halves, path, metadata={"format": "pt"})
        if config is not None:
            write_json(path.parent / "config.json", config)

    network = "diffusion_pytorch_model.safetensors"
    save(f"unet/{network}", unet, {"_class_name": "UNet2DConditionModel", **UNET_CONFIG})
    vae_config = {"_class_name": "AutoencoderKL", **VAE_CONFIG, "scaling_factor": scaling_factor}
    save(f"vae/{network}", vae, vae_config)
    tokenizer = build_tokenizer(folder / "tokenizer")
    text_config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    text_config |= TEXT_CONFIG | special_ids(tokenizer)
    save("text_encoder/model.safetensors", clip.text_model, text_config, prefix="text_model.")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(
        folder / "scheduler/scheduler_config.json",
        {"_class_name": "PNDMScheduler", "clip_sample": False} | SCHEDULER_CONFIG,
    )
    parts = {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
    }
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})

    image_half = {key: value for key, value in clip.state_dict().items() if not key.startswith("text_model.")}
    save("evaluation/clip.safetensors", image_half)
    save("evaluation/judge.safetensors", judge)


def main() -> None:
    """All stages in turn, then the export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/toybox"), help="where the model goes")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/toybox-work"), help="checkpoints and sample pictures"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    print(f"drawing {PICTURES} pictures")
    pictures = draw_pictures(PICTURES)
    clip = train_clip(args.work, pictures, STEPS["clip"])
    vae = train_vae(args.work, pictures, STEPS["vae"])
    polish_decoder(args.work, vae, pictures, STEPS["decoder"])
    unet, scaling_factor = train_unet(args.work, vae, clip, pictures[:LATENTS], STEPS["unet"])
    judge = train_judge(args.work, pictures, STEPS["judge"])
    export(args.output, clip, vae, unet, judge, scaling_factor)
    print(f"wrote the model to {args.output}; measure it with: python examples/evaluate.py --model {args.output}")


if __name__ == "__main__":
    main()
