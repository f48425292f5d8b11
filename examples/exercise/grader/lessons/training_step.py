"""Part 13: how the known mistakes with a training step are recognised (exercise E4, task 3a)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import minti
from exercise.grader.lessons.tokens import own_tokenizer, small_text_encoder
from exercise.grader.mistakes.encoding import ENCODED, IDS, LATENTS, TOKENS
from exercise.grader.mistakes.training_loss import LOSSES, STEP
from exercise.grader.part import Part, Task
from exercise.grader.world import captioned, gradient, predicting_noise, randn, seeded, toybox, toys
from minti.images import to_pil

TEMPLATES = ("a photo of a {}", "a {}", "a red {} on the left", "{}")


@torch.no_grad()
def image_latents(vae: Any, pixels: Tensor, generator: torch.Generator) -> Tensor:
    # as `TrainingImages` and `StableDiffusion.scale` do
    return vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    length = tokenizer.model_max_length  # `minti.text.tokenize` does it by hand, and warns of what is cut
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return tokenizer(prompts, **options, return_tensors="pt").input_ids


def training_loss(
    wrapper: Any,
    pixels: Tensor,
    templates: Sequence[str],
    placeholder: str,
    loss: Callable[..., Tensor],
    generator: torch.Generator,
) -> Tensor:
    latents = image_latents(wrapper.vae, pixels, generator)
    chosen = torch.randint(len(templates), (len(pixels),), generator=generator)
    timesteps = torch.randint(wrapper.scheduler.config.num_train_timesteps, (len(pixels),), generator=generator)
    prompts = [templates[i].replace("{}", placeholder) for i in chosen]
    embeddings = wrapper.text_encoder(token_ids(wrapper.tokenizer, prompts)).last_hidden_state
    return loss(wrapper, latents, timesteps, embeddings, generator)


class SmallVAE(nn.Module):
    """With the names of diffusers' AutoencoderKL: it halves images, and its factor is not SD v1.4's."""

    def __init__(self, factor: float = 0.25):
        super().__init__()
        self.weight, self.config = nn.Parameter(torch.tensor(3.0)), SimpleNamespace(scaling_factor=factor)

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        mean = self.weight * F.avg_pool2d(pixels, 2)

        def sample(generator: torch.Generator | None = None) -> Tensor:
            return mean + 0.5 * torch.randn(mean.shape, generator=generator)

        return SimpleNamespace(latent_dist=SimpleNamespace(sample=sample, mode=lambda: mean, mean=mean))


def pixels_of(count: int) -> Tensor:
    return randn(count, 3, 4, 4).clamp(-1, 1)


def graph(value: Any) -> str:
    return "yes" if isinstance(value, Tensor) and value.requires_grad else "no"


def latents_probe(function: Callable[..., Any]) -> dict[str, Any]:
    vae = SmallVAE()
    value = function(vae, pixels_of(2), seeded(2))
    return {
        "latents of two images": value.detach() if isinstance(value, Tensor) else value,
        "do they have a gradient": graph(value),
    }


def ids_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """On prompts that are short, of several lengths, and too long."""
    tokenizer = own_tokenizer()
    short, several = ["a toy"], ["a photo of a red star", "", "toy"]
    long = [" ".join(["a red toy"] * 20)]
    return {
        'the tokens of "a toy"': function(tokenizer, list(short)),
        "of prompts of several lengths": function(tokenizer, list(several)),
        "of a prompt that is too long": function(tokenizer, long),
    }


def loss_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """What part 5's loss is given, and what comes back; 50 timesteps, so that every one can be told."""
    tokenizer = own_tokenizer()
    tokenizer.add_tokens(["<new>"])
    text_encoder, calls = small_text_encoder(tokenizer), []
    weight = text_encoder.get_input_embeddings().weight
    text_encoder.requires_grad_(False)
    weight.requires_grad_(True)
    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=50))
    wrapper = SimpleNamespace(vae=SmallVAE(), text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)

    def loss(wrapper: Any, latents: Tensor, timesteps: Tensor, embeddings: Tensor, generator: Any) -> Tensor:
        calls.append((latents.detach(), timesteps, embeddings.detach(), graph(latents)))
        noise = torch.randn(1, generator=generator).squeeze()
        ramp = torch.arange(embeddings.numel()).view_as(embeddings) / embeddings.numel()
        return latents.detach().mean() + timesteps.float().mean() + (ramp * embeddings).sum() + noise

    value = function(wrapper, pixels_of(3), TEMPLATES, "<new>", loss, seeded(1))
    called = calls[-1] if calls else (None,) * 4
    found = {"how often the loss was computed": len(calls)}
    found |= dict(zip(("the latents", "the timesteps", "the context", "do the latents have a gradient"), called))
    found["the loss"] = value.detach() if isinstance(value, Tensor) else value
    early = "computed already" if weight.grad is not None else None
    slope = early or gradient(value, weight)
    found["the token embeddings' gradient"] = slope if isinstance(slope, str) else slope.norm(dim=1)
    return found


def image(mine: Any) -> Image.Image:
    """A training image, its latents decoded, the same at three timesteps, and what the network sees in each."""
    model, (images, pixels) = toybox(), toys()
    noising, seen = predicting_noise(model), []
    vae = SimpleNamespace(config=model.vae.config)
    vae.encode = lambda pixels: SimpleNamespace(latent_dist=model.vae.encode(pixels))

    def loss(wrapper: Any, latents: Tensor, timesteps: Tensor, embeddings: Tensor, generator: Any) -> Tensor:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = noising.scheduler.add_noise(latents, noise, timesteps)
        clean = noising.scheduler.clean_from_noise(noisy, noising.unet(noisy, timesteps, embeddings), timesteps)
        seen.extend((latents, noisy, clean, timesteps))
        return minti.diffusion_loss(noising, latents, timesteps, embeddings, noise)

    wrapper = SimpleNamespace(
        vae=vae, scheduler=noising.scheduler, tokenizer=model.tokenizer, text_encoder=model.text_encoder
    )
    with torch.no_grad():
        mine.training_loss(wrapper, pixels[:4], TEMPLATES[:1], "toy", loss, seeded(6))
        latents, noisy, clean, timesteps = seen
        rows = [to_pil(model.decode(each)) for each in (latents, noisy, clean)]
    order = timesteps.argsort().tolist()
    side = rows[0][0].size
    shown = [[images[i].resize(side) for i in order], *([row[i] for i in order] for row in rows)]
    captions = [""] * 8 + [f"t = {timesteps[i]}" for i in order] + [""] * 4
    titles = [
        "training images",
        "their latents, decoded",
        "with noise",
        'what the network makes of it, with "a photo of a toy"',
    ]
    return captioned([each for row in shown for each in row], captions, 4, titles)


PART = Part(
    (
        Task(image_latents, latents_probe, ENCODED, LATENTS),
        Task(token_ids, ids_probe, TOKENS, IDS),
        Task(training_loss, loss_probe, STEP, LOSSES),
    ),
    image,
)
