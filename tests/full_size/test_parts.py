"""The networks at their full size, one by one and in the loss, and whole images."""

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_lora, seeded

import minti


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 4, 64, 64), (1, 4, 48, 72), (1, 4, 33, 40)])
def test_unet(ours, theirs, shape):
    latents, context = torch.randn(shape, generator=seeded(0)), torch.randn(shape[0], 77, 768, generator=seeded(1))
    timesteps = torch.tensor([981, 1])[: shape[0]]
    expected = theirs.unet(latents, timesteps, context).sample
    assert expected.std() > 1e-3
    assert torch.equal(ours.unet(latents, timesteps, context), expected)


def bfloat16_is_emulated() -> bool:
    """Whether this CPU lacks products in bfloat16, or oneDNN does not use them; what torch does not tell is yes."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return not (able.get("avx512_bf16") or able.get("amx_bf16")) or not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.skipif(bfloat16_is_emulated(), reason="this CPU has no products in bfloat16; emulated, they take minutes")
def test_unet_in_bfloat16(ours, release):
    """Prediction and gradient on the context differ from float32 by at most 1.1 times what diffusers' do."""
    latents, context = torch.randn(1, 4, 64, 64, generator=seeded(0)), torch.randn(1, 77, 768, generator=seeded(1))

    def run(unet, dtype=torch.bfloat16):
        inputs = context.to(dtype).requires_grad_(True)
        predicted = unet(latents.to(dtype), torch.tensor([601]), inputs)
        predicted = predicted if torch.is_tensor(predicted) else predicted.sample
        (gradient,) = torch.autograd.grad(predicted.float().square().mean(), inputs)
        return predicted.detach().float(), gradient.float()

    exact = run(ours.unet, torch.float32)
    mine = run(release.ours(torch.bfloat16).unet)
    theirs = run(release.theirs(torch.bfloat16).unet.requires_grad_(False))
    for true, got, other in zip(exact, mine, theirs):
        assert 0 < (got - true).norm() <= 1.1 * (other - true).norm()


@torch.no_grad()
def test_vae(ours, theirs):
    pixels = torch.rand(1, 3, 512, 512, generator=seeded(0)) * 2 - 1
    expected, got = theirs.vae.encode(pixels).latent_dist, ours.encode(pixels)
    assert torch.equal(got.mean, expected.mean)
    assert torch.equal(got.logvar, expected.logvar)
    latents = expected.sample(seeded(1))
    assert torch.equal(got.sample(seeded(1)), latents)
    assert torch.equal(ours.vae.decode(latents), theirs.vae.decode(latents).sample)


def test_tokenizer(ours):
    """CLIP's: so many tokens, whole words among them, and any other text in bytes, so that nothing is lost."""
    tokenizer, text = ours.tokenizer, "naïve café 日本 🙂"
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    ids = tokenizer("A photo of a Cat").input_ids
    assert [tokenizer.decode(i).strip() for i in ids[1:-1]] == ["a", "photo", "of", "a", "cat"]
    assert (ids[0], ids[-1]) == (49406, 49407)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_text(ours, theirs):
    prompts = ["", "A photo of a Cat, wearing 3 hats!", "naïve café 日本 🙂", "a very long prompt " * 30]
    expected, _ = theirs.encode_prompt(prompts, torch.device("cpu"), 1, False)
    assert torch.equal(ours.encode_prompt(prompts), expected)


@torch.no_grad()
def test_lora(ours, theirs, tmp_path):
    """In all layers of both networks, by way of a file; afterwards neither has a trace of it."""
    everywhere = {"layers": ("attention", "projections", "feed_forward"), "text_encoder": True}
    lora, prompts = random_lora(ours, alpha=3, **everywhere), ["a cat"]
    latents, t = torch.randn(1, 4, 64, 64, generator=seeded(0)), torch.tensor([601])
    minti.save_lora(lora, tmp_path / "lora.safetensors")
    before = ours.encode_prompt(prompts)
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    try:
        expected, _ = theirs.encode_prompt(prompts, torch.device("cpu"), 1, False)
        with lora.attached(ours):
            context = ours.encode_prompt(prompts)
            assert torch.equal(context, expected)
            assert torch.equal(ours.unet(latents, t, context), theirs.unet(latents, t, expected).sample)
    finally:
        theirs.unload_lora_weights()
    assert not torch.equal(context, before)
    assert torch.equal(ours.encode_prompt(prompts), before)


def test_gradient_on_the_embedding(release, theirs):
    """d loss / d embedding vectors, through the frozen UNet and text encoder; a concept of two vectors."""
    ours = release.ours()
    rows = torch.randn(2, 768, generator=seeded(0)) * 0.02
    ours.add_word("<Cat>", rows)
    tokenizer, text_encoder = ours.tokenizer, ours.text_encoder
    weight = text_encoder.get_input_embeddings().weight.requires_grad_(True)
    ids = tokenizer("a photo of a <Cat> <Cat>_1", padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert (ids >= 49408).sum() == 2
    latents, noise = torch.randn(2, 1, 4, 64, 64, generator=seeded(1))
    t = torch.tensor([601])
    theirs.unet.requires_grad_(False)

    wrapper = minti.TrainingWrapper(ours, minti.TextualInversionConfig())
    minti.diffusion_loss(wrapper, latents, t, ours.encode_prompt("a photo of a <cat>"), noise).backward()
    got, weight.grad = weight.grad, None
    noisy = diffusers.DDPMScheduler.from_config(theirs.scheduler.config).add_noise(latents, noise, t)
    F.mse_loss(theirs.unet(noisy, t, text_encoder(ids)[0]).sample, noise).backward()
    assert weight.grad[-2:].abs().max() > 0
    assert torch.equal(got, weight.grad)


def test_an_image_equals_the_pipeline_s(release, ours, theirs):
    """PNDM, as the release asks for: the same image, byte for byte; it varies, and the prompt matters."""
    options = {"num_inference_steps": release.steps, "generator": seeded(0)}
    expected = theirs("a photo of a cat", **options).images[0]
    options["generator"] = seeded(0)
    steps = list(minti.sample_steps(ours, "a photo of a cat", sampler="pndm", **options))
    with torch.no_grad():
        image = minti.images.to_pil(ours.decode(steps[-1].latents))[0]
    assert image.tobytes() == expected.tobytes()
    assert np.asarray(image).std() > 1
    options["generator"] = seeded(0)
    other = next(minti.sample_steps(ours, "an oil painting", sampler="pndm", **options))
    assert not torch.equal(other.latents, steps[0].latents)
