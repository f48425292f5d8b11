"""minti as `benchmark.py` times it: with its default settings, as the scripts run it; and with OpenVINO inside."""

from __future__ import annotations

from support.benchmark_cases import PROMPT, TOY
from support.host_memory import keep_freed_memory
from support.openvino_engine import OpenVINO

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

import minti
from minti.speed.deep_cache import DeepCache
from minti.textual_inversion import TrainingImages, batch_loss
from minti.training import Trainer

# What saves time, together; compare_samplers.py asks the judge what it costs.
LEAN_EVERY = 3  # DeepCache
LEAN = {"num_inference_steps": 15, "sampler": "dpm-solver++", "guidance_interval": (250, 1000)}


class Minti:
    """minti with its default settings, as the scripts run it."""

    def __init__(self, folder: str, device: str, dtype: torch.dtype, batch: int):
        keep_freed_memory()
        self.device, self.batch = device, batch
        self.model = minti.StableDiffusion.from_pretrained(folder, device, dtype)
        self.resolution = self.model.resolution
        self.networks = (self.model.unet, self.model.vae, self.model.text_encoder)
        self.inside, self.begun = ExitStack(), None

    def prepare_training(self, pictures: torch.Tensor, checkpointing: bool = False) -> None:
        """Everything before the first step."""
        config = minti.TextualInversionConfig(
            initializer_token="toy",
            batch_size=self.batch,
            max_steps=10**6,
            templates=("a photo of a {}",),
            gradient_checkpointing=checkpointing,
        )
        wrapper = minti.TrainingWrapper(self.model, config)
        self.wrapper, self.steps = wrapper, minti.textual_inversion(wrapper, pictures)

    def prepare_lora(self, pictures: torch.Tensor) -> None:
        """A LoRA on the attention instead of a word."""
        self.model.freeze()
        lora, concept = minti.LoRA(self.model), TrainingImages(self.model, pictures)
        optimizer = torch.optim.AdamW(lora.trainable(), lr=1e-4)
        draw = lambda generator: concept.batch(self.batch, [PROMPT], generator)  # noqa: E731
        generator = torch.Generator().manual_seed(0)
        self.steps = iter(Trainer(self.model, lora, draw, batch_loss, optimizer, 10**6, generator))

    def train_step(self) -> None:
        """One step."""
        next(self.steps)

    def save(self, path: Path) -> None:
        """The learned embedding."""
        minti.save_embeddings(self.wrapper, path)

    def denoise(self, steps: int, decode: bool, **options: object) -> Tensor | list[Image]:
        """Guided denoising, and a decode."""
        options = {"num_inference_steps": steps, "sampler": "ddim"} | options
        generator, output = torch.Generator().manual_seed(0), "pil" if decode else "latents"
        return minti.sample(self.model, [TOY] * self.batch, generator=generator, output=output, **options)

    def lean_picture(self) -> None:
        """A picture with all that saves time."""
        with DeepCache(LEAN_EVERY).attached(self.model):
            self.denoise(0, True, **LEAN)

    def short_step(self) -> None:
        """A guided step in which deep features are kept; the first keeps them."""
        if self.begun is None:
            self.inside.enter_context(DeepCache(500).attached(self.model))
            self.begun = minti.sample_steps(self.model, [TOY] * self.batch, num_inference_steps=500)
        next(self.begun)


class MintiByOpenVINO(Minti):
    """minti, whose UNet OpenVINO computes."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.engine = OpenVINO()
        self.inside.enter_context(self.engine.attached(self.model))

    def lean_picture(self) -> None:
        """The same steps, guided in the same ones, but all whole: what is compiled cannot keep features."""
        self.denoise(0, True, **LEAN)

    def told_apart(self, result: dict, case: str) -> dict:
        """What was timed without what conversion and compilation took, which fell into a case without warm-up."""
        if case != "denoise":
            return (
                result | self.engine.seconds | {"seconds": [result["seconds"][0] - sum(self.engine.seconds.values())]}
            )
        return result | self.engine.seconds | {"difference": self.difference()}

    def difference(self) -> float:
        """The largest between the latents after two steps and those of torch, in standard deviations of these."""
        ours = self.denoise(2, False).float()
        self.inside.close()
        theirs = self.denoise(2, False).float()
        return ((ours - theirs).abs().max() / theirs.std()).item()


KINDS = {"minti": Minti, "openvino": MintiByOpenVINO}
