"""Super-resolution by concatenation: the same network as diffusers' with a wider first convolution and class labels."""

import copy
import warnings
from contextlib import nullcontext

import diffusers
import pytest
import torch
import torch.nn.functional as F
from helpers import PROMPTS, SCHEDULER, UNET, seeded
from torch import nn

import minti
from minti.adapters.super_resolution import SuperResolution, augmented, enlarged

LOW = torch.rand(2, 3, 8, 8, generator=seeded(3)) * 2 - 1  # as large as the latents


def learned(unet) -> SuperResolution:
    """One of random weights, as if it had been trained."""
    adapter = SuperResolution(unet)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(4))
    adapter.low, adapter.level = LOW, 20
    return adapter


def inputs(model):
    """Latents, timesteps and context for two images."""
    return torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([500, 30]), model.encode_prompt(PROMPTS)


def theirs(adapter, unet):
    """diffusers' UNet that has the weights of both."""
    network = diffusers.UNet2DConditionModel(**UNET | {"in_channels": 7, "num_class_embeds": 1000}).eval()
    network.load_state_dict(adapter.concatenated(unet))
    return network


def draw(model, adapter=None):
    with nullcontext() if adapter is None else adapter.attached(model):
        options = {"num_inference_steps": 2, "guidance_scale": 1, "output": "latents"}
        return minti.sample(model, PROMPTS, generator=seeded(), **options)


@torch.no_grad()
def test_it_begins_without_a_trace_and_leaves_none(tiny):
    alone = draw(tiny)
    new, trained = SuperResolution(tiny.unet), learned(tiny.unet)
    new.low, new.level = LOW, 7
    assert torch.equal(draw(tiny, new), alone)
    assert not torch.allclose(draw(tiny, trained), alone, atol=0.1)
    trained.low = None
    assert torch.equal(draw(tiny, trained), alone)


@torch.no_grad()
def test_a_wider_convolution_is_the_sum_of_two():
    """W [x; y] = W_x x + W_y y, in float64 to its rounding: the order of the sums differs."""
    x, y, w = (torch.randn(shape, generator=seeded()).double() for shape in ((2, 4, 8, 8), (2, 3, 8, 8), (32, 7, 3, 3)))
    both = F.conv2d(torch.cat([x, y], dim=1), w, padding=1)
    apart = F.conv2d(x, w[:, :4], padding=1) + F.conv2d(y, w[:, 4:], padding=1)
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_network_equals_diffusers_with_concatenated_weights(tiny):
    """In float64 to rounding, as the convolution's sums stand in another order; with a level for each image."""
    adapter = learned(tiny.unet)
    x, t, context = (value.double() if value.is_floating_point() else value for value in inputs(tiny))
    network = theirs(adapter, tiny.unet).double()
    tiny.unet.double(), adapter.double()
    for level in (torch.tensor([20, 999]), 0):
        adapter.level = level
        labels = torch.as_tensor(level).expand(2)
        expected = network(torch.cat([x, LOW.double()], dim=1), t, context, class_labels=labels).sample
        with adapter.attached(tiny):
            torch.testing.assert_close(tiny.unet(x, t, context), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_embedding_of_the_level_equals_diffusers_bit_for_bit(tiny):
    """Where the low image's weights are zero, and the sums so the same."""
    adapter, (x, t, context) = learned(tiny.unet), inputs(tiny)
    nn.init.zeros_(adapter.conv_in.weight)
    network = theirs(adapter, tiny.unet)
    labels = torch.tensor([20, 20])
    expected = network(torch.cat([x, LOW], dim=1), t, context, class_labels=labels).sample
    alone = tiny.unet(x, t, context)
    with adapter.attached(tiny):
        assert torch.equal(tiny.unet(x, t, context), expected)
    assert not torch.allclose(expected, alone, atol=1e-2)


@torch.no_grad()
def test_samples_equal_the_upscale_pipeline(tiny, opened_by_diffusers):
    """With guidance and a noise level, from the same draws; float32's rounding over two steps."""
    adapter, components = learned(tiny.unet), opened_by_diffusers.components
    parts = {name: components[name] for name in ("text_encoder", "tokenizer")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the VAE's scaling factor, which is not used here
        pipe = diffusers.StableDiffusionUpscalePipeline(
            **parts,
            vae=copy.deepcopy(components["vae"]),  # whose scaling factor it changes
            unet=theirs(adapter, tiny.unet),
            low_res_scheduler=diffusers.DDPMScheduler(**SCHEDULER),
            scheduler=diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False),
        )
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 4.0}
    how = {"noise_level": 120, "output_type": "latent", "generator": seeded()}
    expected = pipe(PROMPTS, image=LOW / 2 + 0.5, **options, **how).images
    generator = seeded()
    adapter.low, adapter.level = augmented(LOW, 120, tiny.scheduler, generator), 120
    with adapter.attached(tiny):
        got = minti.sample(tiny, PROMPTS, output="latents", sampler="ddim", generator=generator, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_separated_is_the_opposite_of_concatenated(tiny):
    adapter, weights = learned(tiny.unet), tiny.unet.state_dict()
    tensors = {key: tensor.clone() for key, tensor in adapter.concatenated(tiny.unet).items()}
    nn.init.zeros_(tiny.unet.conv_in.weight)
    opened = SuperResolution.separated(tensors, tiny.unet)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in tiny.unet.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(opened.parameters(), adapter.parameters()))
    assert set(tensors) - set(weights) == {"class_embedding.weight"}
    with pytest.raises(ValueError, match=r"super-resolution for this UNet: 'class_embedding.weight'"):
        SuperResolution.separated(weights, tiny.unet)


def test_the_gradient_reaches_the_adapter_alone(tiny):
    """W_y, and the one row of the embedding that was asked for; from the first step, when both are zero."""
    adapter = SuperResolution(tiny.unet)
    adapter.low, adapter.level = LOW, 20
    tiny.freeze()
    x, t, context = inputs(tiny)
    with adapter.attached(tiny):
        tiny.unet(x, t, context).square().mean().backward()
    networks = (tiny.unet, tiny.vae, tiny.text_encoder)
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert adapter.conv_in.weight.grad.abs().amin(dim=(0, 2, 3)).min() > 0
    assert adapter.levels.weight.grad.any(dim=1).nonzero().flatten().tolist() == [20]


def test_what_does_not_fit_is_refused(tiny):
    adapter, (x, t, context) = learned(tiny.unet), inputs(tiny)
    for low, level, message in (
        (LOW, 1000, "level = 1000; expected 0 to 999"),
        (LOW, -1, "level = -1; expected 0 to 999"),
        (LOW[[0, 1, 0]], 3, "3 low images for 2 images; give one, or one for each image"),
    ):
        adapter.low, adapter.level = low, level
        with adapter.attached(tiny), pytest.raises(ValueError, match=message):
            tiny.unet(x, t, context)


def test_augmentation_is_the_forward_process_and_nothing_at_level_0(tiny):
    level = torch.tensor([0, 120])
    got = augmented(LOW, level, tiny.scheduler, seeded())
    noise = torch.randn(LOW.shape, generator=seeded())
    expected = diffusers.DDPMScheduler(**SCHEDULER).add_noise(LOW, noise, level)
    assert torch.equal(got[0], LOW[0])
    torch.testing.assert_close(got[1], expected[1])
    assert enlarged(LOW, (8, 8)) is LOW
    assert enlarged(LOW, (16, 24)).shape == (2, 3, 16, 24)
