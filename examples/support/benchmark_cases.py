"""What `benchmark.py` times, one case in a fresh process: `benchmark_minti.py`, or the parts of diffusers put together.

The diffusers side does what its textual-inversion example and its `StableDiffusionPipeline` do: encode the picture at
every step, AdamW on the whole embedding, put the old rows back; or, for a LoRA, what its LoRA example does with peft.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

PROMPT = "a photo of a <concept>"
TOY = "a photo of a toy"


class Diffusers:
    """The parts of diffusers, as its example and its pipeline put them together."""

    def __init__(self, folder: str, device: str, dtype: torch.dtype, batch: int):
        import diffusers

        self.device, self.batch, self.dtype, self.accumulation = device, batch, dtype, 1
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, feature_extractor=None, torch_dtype=dtype
        ).to(device)
        self.pipe.scheduler = diffusers.DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.resolution = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        self.networks = (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)

    def prepare_training(self, pictures: torch.Tensor, checkpointing: bool = False) -> None:
        """Adds the token; the text encoder trains in float32, the other networks are frozen."""
        pipe = self.pipe
        if checkpointing:  # as the example does: without training mode the UNet would ignore it
            pipe.unet.train().enable_gradient_checkpointing()
            pipe.text_encoder.gradient_checkpointing_enable()
        pipe.tokenizer.add_tokens(["<concept>"])
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
        pipe.text_encoder.float()
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False)
        self.weight = pipe.text_encoder.get_input_embeddings().weight.requires_grad_(True)
        with torch.no_grad():
            self.weight[-1] = self.weight[pipe.tokenizer.convert_tokens_to_ids("toy</w>")]
        self.original = self.weight.detach().clone()
        self.optimizer = torch.optim.AdamW([self.weight], lr=self.weight.square().mean().sqrt().item() * 0.3)
        self.pictures = pictures.to(self.device, self.dtype)
        import diffusers

        self.noising = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)

    def prepare_lora(self, pictures: torch.Tensor) -> None:
        """peft's matrices on the UNet's attention, in float32, as the LoRA example has them."""
        import peft

        self.prepare_training(pictures)
        self.weight, unet = None, self.pipe.unet
        self.pipe.text_encoder.to(self.dtype).requires_grad_(False)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        matrices = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in matrices:
            parameter.data = parameter.float()
        self.optimizer = torch.optim.AdamW(matrices, lr=1e-4)

    def train_step(self) -> None:
        """One step."""
        for _ in range(self.accumulation):
            self._backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.weight is not None:
            with torch.no_grad():
                self.weight[:-1] = self.original[:-1]

    def _backward(self) -> None:
        pipe = self.pipe
        pixels = self.pictures[torch.randint(len(self.pictures), (self.batch,))]
        latents = pipe.vae.encode(pixels).latent_dist.sample() * pipe.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (self.batch,), device=latents.device)
        length = pipe.tokenizer.model_max_length
        ids = pipe.tokenizer([PROMPT] * self.batch, padding="max_length", max_length=length, return_tensors="pt")
        context = pipe.text_encoder(ids.input_ids.to(self.device))[0].to(self.dtype)
        noisy = self.noising.add_noise(latents, noise, timesteps)
        prediction = pipe.unet(noisy, timesteps, context).sample
        target = noise
        if self.noising.config.prediction_type == "v_prediction":
            target = self.noising.get_velocity(latents, noise, timesteps)
        (torch.nn.functional.mse_loss(prediction.float(), target.float()) / self.accumulation).backward()

    def save(self, path: Path) -> None:
        """The learned embedding."""
        from safetensors.torch import save_file

        save_file({"<concept>": self.weight[-1:].detach().cpu().clone()}, path)

    def denoise(self, steps: int, decode: bool) -> None:
        """Guided denoising, and a decode."""
        self.pipe(
            [TOY] * self.batch,
            num_inference_steps=steps,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(0),
            output_type="pil" if decode else "latent",
        )


def timed(action: Callable[[], object], device: str) -> float:
    """Seconds of a call; waits for the device before and after."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def run_case(
    case: str,
    library: str,
    folder: str,
    device: str,
    dtype: str,
    batch: int,
    count: int,
    checkpointing: bool = False,
) -> dict:
    """Times a case `count` times after a warm-up; with the process's peak memory."""
    started = time.perf_counter()
    if library == "diffusers":
        kind = Diffusers
    else:  # not at the top: it imports minti, for whose import diffusers' run would pay
        from support.benchmark_minti import KINDS

        kind = KINDS[library]
    engine = kind(folder, device, getattr(torch, dtype), batch)
    if case == "load":
        for part in engine.networks:  # minti maps the files; what is mapped is read when it is touched
            for parameter in part.parameters():
                parameter.sum()
        loaded = time.perf_counter() - started
        return {"seconds": [loaded], "memory": peak_memory(device)}
    if case in ("train", "run", "lora"):
        noise = torch.rand(5, 3, engine.resolution, engine.resolution, generator=torch.Generator().manual_seed(0))
        if case == "lora":
            engine.prepare_lora(noise * 2 - 1)
        else:
            engine.prepare_training(noise * 2 - 1, checkpointing)
        action = engine.train_step
    else:
        actions = {"denoise": lambda: engine.denoise(2, False), "picture": lambda: engine.denoise(20, True)}
        action = actions[case] if case in actions else getattr(engine, case)
    if case == "run":
        for _ in range(count):
            action()
        with tempfile.TemporaryDirectory() as temporary:
            engine.save(Path(temporary) / "learned_embeds.safetensors")
        return {"seconds": [], "memory": peak_memory(device)}
    if case not in ("picture", "lean_picture"):
        action()  # warm-up
    seconds = [timed(action, device) / (2 if case == "denoise" else 1) for _ in range(count)]
    result = {"seconds": seconds, "memory": peak_memory(device)}
    return result if library != "openvino" else engine.told_apart(result, case)


def peak_memory(device: str) -> int:
    """Bytes: on a GPU what torch has allocated, on a CPU what the process has held."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    torch.manual_seed(0)
    print(json.dumps(run_case(**arguments)))
