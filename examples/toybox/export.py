"""The toybox's configs, and writing it in exactly the folder layout of SD v1.4."""

from __future__ import annotations

from pathlib import Path

from minti.checkpoints.export import INDEX
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from data import CONTEXT_LENGTH, build_tokenizer, write_json
from minti.unet import UNet
from minti.vae import VAE
from networks import Judge, ToyCLIP

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
# The schedule of the DDPM paper (arXiv 2006.11239), which ends in almost pure noise, and velocity prediction. SD v1.4's
# own leaves enough signal at the last step to tell what colour the background of so small a picture has; a model that
# has seen it there does not listen to the prompt, and draws what the starting noise happens to have (arXiv 2305.08891).
SCHEDULER_CONFIG = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
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
# The toybox knows few words; its templates are true of any picture of a toy.
DEFAULTS = {
    "half_precision": False,
    "guidance_scale": 5.0,
    "batch_size": 8,
    "lora_learning_rate": 4e-3,
    "network_learning_rate": 2e-4,
    "tuning_steps": 100,
    "class_pictures": 64,
    "templates": ["a photo of a {}", "a {}", "{}"],
    "prompts": [
        "a photo of a {} on a teal background",
        "a small {} on the left on a sand background",
        "a big {} at the bottom",
        "a cartoon of a {}",
        "a pixel art picture of a {} on a navy background",
        "a sketch of a {}",
        "a photo of a {} next to a white heart with a red spot",
    ],
}


def special_ids(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """What the text encoder's config must know of the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def export(folder: Path, clip: ToyCLIP, vae: VAE, unet: UNet, judge: Judge, scaling_factor: float) -> None:
    """Writes the model in the layout of SD v1.4, weights in half precision; beside it, what measures it."""

    def save(name: str, module: nn.Module | dict[str, Tensor], config: dict | None = None) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = module if isinstance(module, dict) else module.state_dict()
        halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}
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
    text_encoder = clip.text_model.state_dict()
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text_encoder.items()}
    save("text_encoder/model.safetensors", named, text_config)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(
        folder / "scheduler/scheduler_config.json",
        {"_class_name": "PNDMScheduler", "clip_sample": False} | SCHEDULER_CONFIG,
    )
    write_json(folder / "model_index.json", INDEX)

    write_json(folder / "defaults.json", DEFAULTS)
    image_half = {key: value for key, value in clip.state_dict().items() if not key.startswith("text_model.")}
    save("evaluation/clip.safetensors", image_half)
    save("evaluation/judge.safetensors", judge)
