"""Exercise E4, task 1: the loss, of one batch and over the validation set."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import pictures, wrapper

import minti
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import TrainingImages, batch_loss


def test_loss_and_its_gradient_equal_diffusers(tiny, pipeline):
    """d loss / d embedding through the frozen UNet and text encoder, put together from diffusers' parts."""
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    timesteps = torch.tensor([17, 801])
    ids = tiny.tokenize(["a photo of a cat", "the toy"])

    gradients, losses = [], []
    for model, unet in ((tiny, None), (pipeline, pipeline.unet)):
        weight = model.text_encoder.get_input_embeddings().weight.requires_grad_(True)
        context = model.text_encoder(ids)[0]
        if unet is None:
            loss = minti.diffusion_loss(wrapper(tiny), latents, timesteps, context, noise=noise)
        else:
            noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
            loss = F.mse_loss(unet(noisy, timesteps, context).sample, noise)
        loss.backward()
        losses.append(loss.item())
        gradients.append(weight.grad)
    assert losses[0] == losses[1]
    assert gradients[0].abs().max() > 1e-6
    assert torch.equal(*gradients)


def test_loss_draws_its_noise_from_the_generator(tiny):
    w, latents, t = wrapper(tiny), torch.zeros(2, 4, 8, 8), torch.tensor([5, 6])
    context = tiny.encode_prompt(["a", "cat"])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    drawn = minti.diffusion_loss(w, latents, t, context, generator=torch.Generator().manual_seed(3))
    assert drawn == minti.diffusion_loss(w, latents, t, context, noise=noise)


def test_accumulating_is_a_larger_batch(tiny_folder):
    """Gradients of two accumulated batches of one, against both together in one batch of two."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder)
    w = wrapper(model)
    minti.prepare_for_textual_inversion(w)
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t, prompts = torch.tensor([100, 900]), ["a photo of a <concept>", "the <concept>"]
    minti.diffusion_loss(w, latents, t, model.encode_prompt(prompts), noise).backward()
    together = w.embedding.values.grad.clone()
    w.embedding.values.grad = None
    for i in range(2):
        part = slice(i, i + 1)
        (minti.diffusion_loss(w, latents[part], t[part], model.encode_prompt(prompts[i]), noise[part]) / 2).backward()
    torch.testing.assert_close(w.embedding.values.grad, together, rtol=1e-4, atol=1e-6 * together.abs().max().item())


def test_checkpointing_gives_the_same_gradient_for_less_memory(tiny):
    """Bit for bit; what autograd keeps between forward and backward is less than half."""
    w = wrapper(tiny)
    minti.prepare_for_textual_inversion(w)
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t, context = torch.tensor([100, 900]), tiny.encode_prompt(["a photo of a <concept>", "the <concept>"])
    gradients, kept = [], []
    for on in (False, True):
        tiny.unet.gradient_checkpointing(on)
        storages = {}

        def remember(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = minti.diffusion_loss(w, latents, t, context, noise)
        weights = {p.untyped_storage().data_ptr() for p in tiny.unet.parameters()}
        kept.append(sum(size for where, size in storages.items() if where not in weights))
        gradients += torch.autograd.grad(loss, context, retain_graph=True)
    assert torch.equal(*gradients)
    assert kept[1] < kept[0] / 2


def test_the_validation_loss_is_the_mean_over_its_set(tiny):
    w = wrapper(tiny)
    minti.prepare_for_textual_inversion(w)
    fixed = ValidationSet(TrainingImages(tiny, pictures()), 6, torch.Generator().manual_seed(0))
    prompts = ["a photo of a <concept>", "the <concept>"]
    with torch.no_grad():
        each = [
            minti.diffusion_loss(
                w,
                fixed.latents[i : i + 1],
                fixed.timesteps[i : i + 1],
                tiny.encode_prompt(prompts[i % 2]),
                fixed.noise[i : i + 1],
            ).item()
            for i in range(6)
        ]
    first, again = (fixed.mean(partial(batch_loss, tiny), prompts, 2) for _ in range(2))
    assert first == again == pytest.approx(np.mean(each), rel=1e-5)
    assert fixed.timesteps.tolist() == [83, 250, 416, 583, 750, 916]
