"""Half precision: the networks in bfloat16 or float16, what learns in float32."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import NarrowScaler, pictures, seeded, train, wrapper
from torch import nn

import minti
from minti.embeddings import write_embeddings
from minti.layers import Attention
from minti.speed import bfloat16
from minti.textual_inversion import TextualInversionConfig
from minti.training import Trainer
from minti.wrapper import TrainingWrapper

HALVES = (torch.bfloat16, torch.float16)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_as_exact_as_that_of_diffusers(tiny_folder, tiny, pipeline, dtype):
    """The difference to float32 is at most 1.1 times that of diffusers in the same dtype, in every part."""
    half, theirs = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=dtype), pipeline.to(dtype)
    g = torch.Generator().manual_seed(0)
    latents, context = torch.randn(4, 4, 8, 8, generator=g), torch.randn(4, 16, 48, generator=g)
    pixels, t = torch.rand(4, 3, 16, 16, generator=g) * 2 - 1, torch.tensor([1, 250, 500, 999])
    exact = {
        "unet": tiny.unet(latents, t, context),
        "encode": tiny.vae.encode(pixels).mean,
        "decode": tiny.vae.decode(latents),
        "text": tiny.encode_prompt(["a photo of a cat", "the dog"]),
    }
    ours = {
        "unet": half.unet(latents.to(dtype), t, context.to(dtype)),
        "encode": half.vae.encode(pixels.to(dtype)).mean,
        "decode": half.vae.decode(latents.to(dtype)),
        "text": half.encode_prompt(["a photo of a cat", "the dog"]),
    }
    others = {
        "unet": theirs.unet(latents.to(dtype), t, context.to(dtype)).sample,
        "encode": theirs.vae.encode(pixels.to(dtype)).latent_dist.mean,
        "decode": theirs.vae.decode(latents.to(dtype)).sample,
        "text": theirs.encode_prompt(["a photo of a cat", "the dog"], torch.device("cpu"), 1, False)[0],
    }
    error = lambda got, name: (got[name].float() - exact[name]).abs().mean().item()  # noqa: E731
    for name in exact:
        assert ours[name].dtype == dtype
        assert 0 < error(ours, name) <= 1.1 * error(others, name), name


def relative_error(got, exact):
    return ((got.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("spread", [1, 3])
def test_attention_as_products(spread):
    """Beside torch's fused kernel, which rounds no scores: at most 2.5 times its error, at most twice in the gradients.

    The scores vary by `spread`; without the shift they would be off by 7 times the kernel's error where it is 3.
    """
    g = torch.Generator().manual_seed(0)
    q, k, v, d_out = (
        torch.randn(2, n, 3, 40, generator=g).mul(scale).bfloat16().transpose(1, 2)  # b n heads d -> b heads n d
        for n, scale in ((1500, spread**0.5), (1100, spread**0.5), (1100, 1), (1500, 1))
    )

    def run(function, dtype=torch.bfloat16):
        inputs = [tensor.to(dtype).requires_grad_(True) for tensor in (q, k, v)]
        out = function(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, d_out.to(dtype))

    fused = F.scaled_dot_product_attention
    exact, kernel, products = run(fused, torch.float32), run(fused), run(bfloat16.attention_products)
    for limit, true, reference, got in zip((2.5, 2, 2, 2), exact, kernel, products):
        assert got.shape == true.shape
        assert 0 < relative_error(got, true) <= limit * relative_error(reference, true)


def test_attention_as_products_finds_a_needle():
    """One key far above all others, in no sample of the keys: nothing overflows, its value is the result."""
    q, k = torch.zeros(1, 1, 4, 16), torch.zeros(1, 1, 2000, 16)
    q[..., 0], k[..., 1234, 0] = 4, 300  # a score of 300
    v = torch.randn(1, 1, 2000, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = bfloat16.attention_products(q.bfloat16(), k.bfloat16(), v)
    assert torch.equal(got, v[:, :, 1234:1235].expand(-1, -1, 4, -1))


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, (5, 7)), (2, 1, (6, 7)), (2, 0, (7, 9))])
def test_convolution_as_product(stride, padding, size):
    """Equal to torch's in float32 but for the order of the sums; so is the gradient."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, kernel_size=3, stride=stride, padding=padding)
    x = torch.randn(2, 6, *size, requires_grad=True)
    expected, got = conv(x), bfloat16.convolution_product(conv, x)
    assert torch.allclose(got, expected, atol=1e-6)
    d_out = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, (x, conv.weight), d_out) for out in (expected, got)]
    assert all(torch.allclose(theirs, ours, atol=1e-5) for theirs, ours in zip(*gradients))


def test_layers_in_bfloat16_choose_products_where_they_pay(monkeypatch):
    """Attention over 1,024 positions, and a convolution of 1,024 channels on few; small ones and float32 do not."""
    used = []
    for name in ("attention_products", "convolution_product"):
        function = getattr(bfloat16, name)
        monkeypatch.setattr(bfloat16, name, lambda *args, f=function, name=name: used.append(name) or f(*args))
    attention = Attention(16, heads=2)
    wide, narrow = (nn.Conv2d(8, channels, 3, padding=1) for channels in (1024, 16))
    bfloat16.accelerate(attention, wide, narrow)
    chosen = (["attention_products"], ["convolution_product"], [])
    inputs = (torch.randn(1, 1024, 16), torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4))
    for layer, x, expected in zip((attention, wide, narrow), inputs, chosen):
        exact = layer(x).detach()
        assert used == []
        layer.bfloat16()
        assert relative_error(layer(x.bfloat16()).detach(), exact) < 0.02
        assert used == expected
        used.clear()
    attention(torch.randn(1, 1023, 16).bfloat16())
    wide(torch.randn(1, 8, 32, 33).bfloat16())
    assert used == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "pndm", "dpm-solver++"])
def test_every_sampler_runs_in_half_precision(tiny_folder, tiny, dtype, sampler):
    half = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=dtype)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 10, "sampler": sampler, "output": "latents", "guidance_scale": 2.0}
    run = lambda model: minti.sample(  # noqa: E731
        model,
        ["a cat", "the dog"],
        latents=noise,
        generator=[torch.Generator().manual_seed(i) for i in (1, 2)],
        **options,
    )
    got, exact = run(half), run(tiny)
    assert got.dtype == dtype
    # The rounding of ten steps; noise drawn in half precision is other noise, so that DDPM is not compared.
    if sampler != "ddpm":
        assert (got.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_what_learns_is_float32(tiny_folder, dtype):
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=dtype)
    wrapper = TrainingWrapper(
        model, TextualInversionConfig(steps=12, templates=("a {}",), learning_rate=0.02, initializer_token="toy")
    )
    optimizer = minti.prepare_for_textual_inversion(wrapper)
    assert wrapper.embedding.values.dtype == torch.float32
    states = list(minti.monitored(minti.textual_inversion(wrapper, pictures(), optimizer)))
    assert all(value.dtype == torch.float32 for value in optimizer.state[wrapper.embedding.values].values())
    assert states[-1].validation_loss < states[-1].initializer_loss
    assert {parameter.dtype for parameter in model.unet.parameters()} == {dtype}


def test_words_of_float32_in_a_model_of_half_precision(tiny_folder, tmp_path):
    """Random embedding vectors and loaded ones are float32, the model's embedding matrix is not."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    wrapper = TrainingWrapper(model, TextualInversionConfig(initializer_token=None, steps=1, templates=("a {}",)))
    next(iter(minti.monitored(minti.textual_inversion(wrapper, pictures()))))
    best = wrapper.trainer.monitor.best["values"]
    assert wrapper.embedding.values.dtype == best.dtype == torch.float32
    rows = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    write_embeddings(tmp_path / "word.safetensors", {"<new>": rows})
    minti.load_embeddings(model, tmp_path / "word.safetensors")
    assert torch.equal(model.text_encoder.get_input_embeddings().weight[-2:], rows.bfloat16())


@pytest.mark.slow
def test_float16_finds_its_scale(tiny_folder, monkeypatch):
    """A scale far too large overflows; the steps are skipped, the scale halves, and learning goes on."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: scaler(*args, init_scale=2.0**26, **options))
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.float16)
    wrapper = TrainingWrapper(
        model, TextualInversionConfig(steps=16, templates=("a {}",), learning_rate=0.01, initializer_token="toy")
    )
    optimizer = minti.prepare_for_textual_inversion(wrapper)
    former, moved, norms = wrapper.embedding.values.detach().clone(), [], []
    for state in minti.monitored(minti.textual_inversion(wrapper, pictures(), optimizer)):
        moved.append(not torch.equal(wrapper.embedding.values, former))
        norms.append(state.gradient_norm)
        former = wrapper.embedding.values.detach().clone()
    assert not moved[0]
    assert moved[-2]  # the last yield may have restored the best values
    assert [not math.isnan(norm) for norm in norms[:-1]] == moved[:-1]


def test_a_scale_that_is_not_found(tiny, monkeypatch):
    """Twenty steps may be skipped from where torch's scale begins; the one after them says why."""
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: NarrowScaler(2.0**16, growth_interval=1))
    learned = wrapper(tiny, steps=30)
    with torch.no_grad():
        tiny.unet.conv_out.bias[0] = math.inf
    begin = tiny.text_encoder.get_input_embeddings().weight[tiny.tokenizer.convert_tokens_to_ids("toy</w>")].clone()
    with pytest.raises(minti.TrainingError, match="the loss is inf at step 21"):
        list(minti.textual_inversion(learned, pictures()))
    assert torch.equal(learned.embedding.values.detach()[0], begin)
    assert learned.trainer.completed - learned.trainer.skipped == 0


def test_skipped_steps_between_good_ones(tiny, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: NarrowScaler(2.0**17, growth_interval=1))
    learned, states = train(tiny, steps=7)
    assert [math.isnan(state.gradient_norm) for state in states] == [True, True, False, True, False, True, False]
    assert learned.trainer.number - learned.trainer.skipped == 3


@pytest.mark.parametrize(("row", "lost"), [(0, True), (-1, True), (None, False)])
def test_a_row_that_overflows_in_the_matrix(tiny, monkeypatch, row, lost):
    """torch's scaler leaves the step out whichever row it is, so that it is skipped."""
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: NarrowScaler(2.0, growth_interval=1))
    learned = wrapper(tiny, row_update="restore")
    optimizer = minti.prepare_for_textual_inversion(learned)
    learned.detach()
    (weight,) = learned.embedding.trainable()

    def loss(model, batch):
        if row is not None:
            weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([row % len(weight)]), math.inf))
        return weight.sum()

    trainer = Trainer(tiny, learned.embedding, lambda generator: None, loss, optimizer, 1, seeded(), max_norm=None)
    (step,) = trainer
    assert math.isnan(step.gradient_norm) == lost
    assert trainer.skipped == lost
    assert len(optimizer.state) == (not lost)


def test_the_recipe_that_trains_the_matrix_needs_float32(tiny_folder):
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    wrapper = TrainingWrapper(model, TextualInversionConfig(row_update="restore", templates=("a {}",)))
    with pytest.raises(ValueError, match="load the model in float32"):
        minti.prepare_for_textual_inversion(wrapper)
