"""The diffusers recipe: its examples' training steps (textual inversion, LoRA, ControlNet) and its pipeline.

As in the textual-inversion example, the image is encoded at every step, AdamW runs over the whole embedding, and the
old embedding vectors are put back afterwards. `benchmark.py` and `toybox/time_to_word.py` compare minti with it. Here
is also a model of SD v1.4's size with random weights.
"""

from support.benchmark_cases import PROMPT, TOY, Library

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor


class Diffusers(Library):
    """A pipeline, and what is trained in it."""

    def __init__(self, folder: str, device: str, dtype: torch.dtype, batch: int, **more: Any):
        super().__init__(device, dtype, batch, **more)
        absent = {"safety_checker": None, "feature_extractor": None}
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **absent)
        self.pipe.to(device).set_progress_bar_config(disable=True)
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.noising = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.unet, self.tokenizer, self.accumulation = self.pipe.unet, self.pipe.tokenizer, 1
        self.networks = (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)
        self.resolution = self.unet.config.sample_size * self.pipe.vae_scale_factor

    def freeze(self) -> None:
        """Nothing is trained but what is set afterwards."""
        for network in self.networks:
            network.requires_grad_(False)

    def prepare_training(self, images: Tensor, checkpointing: bool = False) -> None:
        """Adds the token; the text encoder trains in float32, the other networks are frozen."""
        text_encoder = self.pipe.text_encoder
        if checkpointing:  # as the example does: without training mode the UNet would ignore it
            self.unet.train().enable_gradient_checkpointing()
            text_encoder.gradient_checkpointing_enable()
        self.tokenizer.add_tokens(["<concept>"])
        text_encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        text_encoder.float()
        self.freeze()
        self.weight = text_encoder.get_input_embeddings().weight.requires_grad_(True)
        with torch.no_grad():
            self.weight[-1] = self.weight[self.tokenizer.convert_tokens_to_ids("toy</w>")]
        self.original = self.weight.detach().clone()
        self.optimizer = torch.optim.AdamW([self.weight], lr=self.weight.square().mean().sqrt().item() * 0.3)
        self.pixels = images.to(self.device, self.dtype)

    def prepare_lora(self, images: Tensor) -> None:
        """peft's matrices on the UNet's attention, in float32, as the LoRA example has them."""
        import peft

        self.prepare_training(images)
        self.weight = None
        self.pipe.text_encoder.to(self.dtype).requires_grad_(False)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        self.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        matrices = [weight for weight in self.unet.parameters() if weight.requires_grad]
        for weight in matrices:
            weight.data = weight.float()
        self.optimizer = torch.optim.AdamW(matrices, lr=1e-4)

    def train_step(self) -> None:
        """One step of the optimizer."""
        for _ in range(self.accumulation):
            (self.loss() / self.accumulation).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.weight is not None:
            with torch.no_grad():
                self.weight[:-1] = self.original[:-1]

    def loss(self) -> Tensor:
        """The diffusion loss of a random batch."""
        pixels = self.pixels[torch.randint(len(self.pixels), (self.batch,))]
        latents = self.pipe.vae.encode(pixels).latent_dist.sample() * self.pipe.vae.config.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (self.batch,), device=latents.device)
        length = self.tokenizer.model_max_length
        ids = self.tokenizer([PROMPT] * self.batch, padding="max_length", max_length=length, return_tensors="pt")
        context = self.pipe.text_encoder(ids.input_ids.to(self.device))[0].to(self.dtype)
        prediction = self.predict(self.noising.add_noise(latents, noise, timesteps), timesteps, context)
        velocity = self.noising.config.prediction_type == "v_prediction"
        target = self.noising.get_velocity(latents, noise, timesteps) if velocity else noise
        return torch.nn.functional.mse_loss(prediction.float(), target.float())

    def predict(self, *inputs: Tensor, **added: Any) -> Tensor:
        """The UNet's answer."""
        return self.unet(*inputs, **added).sample

    def controlnet(self, given: SimpleNamespace) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The UNet with a ControlNet."""
        control = ControlNetModel.from_pretrained(f"{self.adapters}/controlnet", torch_dtype=self.dtype)
        control.to(self.device)

        def predict() -> Tensor:
            down, mid = control(*given.inputs, given.hint, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return self.predict(*given.inputs, **added)

        return predict, list(control.parameters())

    def ip_adapter(self, given: SimpleNamespace) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The UNet with an IP-Adapter."""
        name = "ip_adapter.safetensors"
        self.pipe.load_ip_adapter(self.adapters, subfolder="", weight_name=name, image_encoder_folder=None)
        processors = [own for name, own in self.unet.attn_processors.items() if "attn2" in name]
        weights = [weight for own in (*processors, self.unet.encoder_hid_proj) for weight in own.parameters()]
        added = {"added_cond_kwargs": {"image_embeds": [given.image_embedding[:, None]]}}
        return lambda: self.predict(*given.inputs, **added), weights

    def save(self, path: Path) -> None:
        """The learned embedding vector."""
        from safetensors.torch import save_file

        save_file({"<concept>": self.weight[-1:].detach().cpu().clone()}, path)

    def sample(self, steps: int, decode: bool, sampler: str = "", guidance_scale: float = 7.5) -> Any:
        """Guided denoising, and the decoded images; `sampler` "lcm" is that of few-step models."""
        if sampler == "lcm":
            self.pipe.scheduler = LCMScheduler.from_config(self.pipe.scheduler.config)
        return self.pipe(
            [TOY] * self.batch,
            height=self.size,
            width=self.size,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pil" if decode else "latent",
        ).images


def write_full_size_model(folder: Path, small: Path, seed: int) -> None:
    """SD v1.4's networks with random weights, and a tokenizer of the right size, after a small model's folder."""
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors", "evaluation"))
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    unet.save_pretrained(folder / "unet")
    widths, down, up = (128, 256, 512, 512), ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    blocks = {"block_out_channels": widths, "down_block_types": down, "up_block_types": up, "layers_per_block": 2}
    AutoencoderKL(**blocks, sample_size=512).save_pretrained(folder / "vae")
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    CLIPTextModel(CLIPTextConfig(**sizes, **ids)).save_pretrained(folder / "text_encoder")

    path = folder / "tokenizer"
    (path / "tokenizer.json").unlink(missing_ok=True)
    vocab = list(json.loads((path / "vocab.json").read_text(encoding="utf-8")))[:-2]
    vocab += [f"<unused-{i}>" for i in range(49406 - len(vocab))] + ["<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")) | {"model_max_length": 77}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
