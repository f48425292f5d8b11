"""The cases of `benchmark.py`, each run in a fresh process: minti, minti with OpenVINO, and `diffusers_recipe.py`.

A class is a library with a model loaded; each of its methods `train`, `unet_step`, ... prepares a case and returns the
action to be timed. A library is imported in its own processes only, so that no other pays for it.
"""

from support.memory import peak_memory

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PROMPT, TOY = "a photo of a <concept>", "a photo of a toy"
CLIP_DIM = 1024  # of the image encoder of h94/IP-Adapter
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
# What saves time, together; toybox/compare_samplers.py measures what it costs in quality.
LEAN_EVERY, LEAN = 3, {"num_inference_steps": 15, "sampler": "dpm-solver++", "interval": (250, 1000)}


class Library:
    """The cases, by what a library's own class has: `unet`, `train_step`, `predict`, `sample` ..."""

    def __init__(self, device: str, dtype: torch.dtype, batch: int, size: int | None = None, adapters: str = ""):
        self.device, self.dtype, self.batch, self.size, self.adapters = device, dtype, batch, size, adapters

    def example(self, batch: int) -> SimpleNamespace:
        """Random inputs of the UNet and its adapters, the same in all libraries."""
        generator, size, config = torch.Generator().manual_seed(0), self.size or self.resolution, self.unet.config
        draw = lambda *shape: torch.randn(*shape, generator=generator).to(self.device, self.dtype)  # noqa: E731
        side = size * config.sample_size // self.resolution
        latents, noise = draw(batch, config.in_channels, side, side), draw(batch, config.in_channels, side, side)
        context = draw(batch, self.tokenizer.model_max_length, config.cross_attention_dim)
        inputs = latents, torch.full((batch,), 500, device=self.device), context
        conditions = {"hint": draw(batch, 3, size, size).sigmoid(), "image_embedding": draw(batch, CLIP_DIM)}
        return SimpleNamespace(inputs=inputs, noise=noise, **conditions)

    def load(self) -> Callable[[], Any]:
        """Reads all weights: minti maps the files, and what is mapped is read when it is touched."""
        return lambda: [weight.sum() for network in self.networks for weight in network.parameters()]

    def train(self, lora: bool = False, **options: Any) -> Callable[[], None]:
        """A training step, of textual inversion or a LoRA, on five images of noise."""
        size = self.size or self.resolution
        images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        (self.prepare_lora if lora else self.prepare_training)(images, **options)
        return self.train_step

    def whole_run(self, steps: int) -> Callable[[], None]:
        """All steps of textual inversion, and the file."""
        step, folder = self.train(), tempfile.TemporaryDirectory()

        def action() -> None:
            for _ in range(steps):
                step()
            self.save(Path(folder.name) / "learned_embeds.safetensors")

        return action

    def adapter(self, kind: str, optimizer: bool) -> Callable[[], float]:
        """A training step of an adapter; returns its loss."""
        given = self.example(self.batch)
        self.freeze()
        predict, weights = getattr(self, kind)(given)
        trained = torch.optim.AdamW([weight.requires_grad_(True) for weight in weights], lr=1e-4)

        def step() -> float:
            (loss := F.mse_loss(predict().float(), given.noise.float())).backward()
            if optimizer:
                trained.step()
            trained.zero_grad()
            return loss.item()

        return step

    def denoise(self) -> Callable[[], Any]:
        """Two guided denoising steps; the latents."""
        return lambda: self.sample(2, decode=False)

    def image(self, steps: int = 0, **options: Any) -> Callable[[], Any]:
        """A whole guided image."""
        return lambda: self.sample(steps, decode=True, **options)

    def few_steps(self, steps: int) -> Callable[[], Any]:
        """An image of a few-step model, without guidance. Its LoRA is merged and takes no time, so none is needed."""
        return self.image(steps, sampler="lcm", guidance_scale=1.0)

    def unet_step(self, guided: bool) -> Callable[[], Tensor]:
        """The UNet alone; guidance doubles its batch."""
        inputs = self.example((2 if guided else 1) * self.batch).inputs
        return torch.no_grad()(lambda: self.predict(*inputs))


class Minti(Library):
    """minti with its default settings, as the scripts run it."""

    def __init__(self, folder: str, device: str, dtype: torch.dtype, batch: int, **more: Any):
        from support.memory import keep_freed_memory

        import minti
        from minti.speed.deep_cache import DeepCache

        super().__init__(device, dtype, batch, **more)
        keep_freed_memory()
        self.model = minti.StableDiffusion.from_pretrained(folder, device, dtype)
        self.resolution, self.tokenizer, self.freeze = self.model.resolution, self.model.tokenizer, self.model.freeze
        self.unet = self.predict = self.model.unet
        self.networks = (self.model.unet, self.model.vae, self.model.text_encoder)
        self.attached, self.minti, self.deep_cache = ExitStack(), minti, DeepCache

    def prepare_training(self, images: Tensor, checkpointing: bool = False) -> None:
        """Everything before the first step."""
        options = {"initializer_token": "toy", "max_steps": 10**6, "templates": ("a photo of a {}",)}
        options |= {"batch_size": self.batch, "gradient_checkpointing": checkpointing}
        wrapper = self.minti.TrainingWrapper(self.model, self.minti.TextualInversionConfig(**options))
        self.train_step = partial(next, iter(self.minti.monitored(self.minti.textual_inversion(wrapper, images))))
        self.save = partial(self.minti.save_embeddings, wrapper)

    def prepare_lora(self, images: Tensor) -> None:
        """A LoRA on the attention."""
        from minti.textual_inversion import TrainingImages, batch_loss
        from minti.training import Trainer

        self.model.freeze()
        lora, generator = self.minti.LoRA(self.model), torch.Generator().manual_seed(0)
        draw = partial(TrainingImages(self.model, images).batch, self.batch, [PROMPT])
        loop = Trainer(
            self.model, lora, draw, batch_loss, torch.optim.AdamW(lora.trainable(), lr=1e-4), 10**6, generator
        )
        self.train_step = partial(next, iter(loop))

    def controlnet(self, given: SimpleNamespace) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The UNet with a ControlNet."""
        from minti.adapters.controlnet import ControlNet

        control = ControlNet.from_pretrained(f"{self.adapters}/controlnet", self.model)
        control.hint = given.hint
        self.attached.enter_context(control.attached(self.model))
        return lambda: self.unet(*given.inputs), list(control.parameters())

    def ip_adapter(self, given: SimpleNamespace) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The UNet with an IP-Adapter."""
        from minti.adapters.ip_adapter import load_ip_adapter

        adapter = load_ip_adapter(self.model, f"{self.adapters}/ip_adapter.safetensors")
        self.attached.enter_context(adapter.attached(self.model))
        *rest, context = given.inputs
        return lambda: self.unet(*rest, adapter.prompted(context, given.image_embedding)), list(adapter.parameters())

    def sample(self, steps: int, decode: bool, **options: Any) -> Any:
        """Guided denoising, and the decoded images."""
        if interval := options.pop("interval", None):
            from minti.guidance.conditions import Conditions

            options["cfg"] = Conditions(self.model, interval=interval)
        options = {"num_inference_steps": steps, "sampler": "ddim", "height": self.size, "width": self.size} | options
        generator, output = torch.Generator().manual_seed(0), "pil" if decode else "latents"
        return self.minti.sample(self.model, [TOY] * self.batch, generator=generator, output=output, **options)

    def lean_image(self) -> Callable[[], Any]:
        """An image with all that saves time."""
        self.attached.enter_context(self.deep_cache(LEAN_EVERY).attached(self.model))
        return self.image(**LEAN)

    def fast(self, case: str, **options: Any) -> Callable[[], Any]:
        """A case with Winograd's convolutions and packed weights."""
        from minti.speed.packed import Packed
        from minti.speed.winograd import Winograd

        for adapter in (Packed(), Winograd()):
            self.attached.enter_context(adapter.attached(self.model))
        return getattr(self, case)(**options)

    def few_steps(self, steps: int, tiny: bool = False, fast: bool = False) -> Callable[[], Any]:
        """As its parent, decoded by a tiny decoder of TAESD's size, random as well; and with `fast`."""
        if tiny:
            from minti.adapters.tiny_decoder import TinyConfig, TinyDecoder, TinyVAE

            vae = self.model.vae.config
            levels = {"block_out_channels": (64,) * len(vae.block_out_channels), "latent_channels": vae.latent_channels}
            config = TinyConfig(num_decoder_blocks=(3,) * (len(vae.block_out_channels) - 1) + (1,), **levels)
            decoder = TinyDecoder(config).requires_grad_(False).to(self.device, self.dtype)
            self.attached.enter_context(TinyVAE(decoder).attached(self.model))
        return self.fast("few_steps", steps=steps) if fast else super().few_steps(steps)

    def short_unet_step(self, guided: bool) -> Callable[[], Tensor]:
        """A step of DeepCache with kept features, which its first step keeps."""
        self.attached.enter_context(self.deep_cache(10**6).attached(self.model))
        return self.unet_step(guided)


def measure(library: str, case: str, device: str, dtype: str, count: int, warm_up: bool, clock: str, **job: Any) -> Any:
    """Seconds of a case, `count` times; peak memory in bytes, of the process and since all was loaded; its loss."""
    now = CLOCKS[clock]
    begin = now()
    if library == "diffusers":
        from support.diffusers_recipe import Diffusers as kind
    else:
        import minti  # noqa: F401

        kind = Minti
    if library == "openvino":
        from support.openvino_cases import MintiByOpenVINO as kind
    options, wait = job.pop("options"), torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    if case == "import":
        return {"seconds": []}
    engine = kind(device=device, dtype=getattr(torch, dtype), **job)
    action = getattr(engine, case)(**options)
    if warm_up:
        action()
    loaded, seconds = peak_memory(device, reset=True), []
    for _ in range(count):
        wait()
        begin = begin if case == "load" else now()
        result = action()
        wait()
        seconds.append((now() - begin) / (2 if case == "denoise" else 1))
    steps = peak_memory(device)
    more = engine.compared(action) if library == "openvino" else {"loss": result} if isinstance(result, float) else {}
    return {"seconds": seconds, "memory": max(loaded, steps), "memory_in_steps": steps} | more


def main() -> None:
    """Runs the case that is described on the command line, in JSON."""
    torch.manual_seed(0)
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
