"""Winograd's convolutions and packed products: exactness against torch's in float64, gradients, and what they leave."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import PROMPTS, learning, random_lora, seeded, wrapper
from torch import nn

import minti
from minti.speed import winograd
from minti.speed.packed import Frozen, LinearForward, Packed, pack, product
from minti.speed.winograd import ConvolutionForward, Winograd, convolve, matrices, tile, transformed

EPS = torch.finfo(torch.float32).eps
ALL = {2: lambda *_: 2, 4: lambda *_: 4}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def both():
    """Both adapters, on every layer whatever its size."""
    return [Packed(least=1), Winograd(ALL[4])]


@pytest.mark.parametrize("m", [2, 4])
def test_the_matrices_filter_in_one_dimension(m):
    """Aᵀ [(G g) ∘ (Bᵀ d)] are the m sums Σ_j d[i + j] g[j] (Lavin and Gray, eq. 5 and 6), with m + 2 products."""
    B, G, A = matrices(m)
    d, g = draw(100, m + 2), draw(100, 3, seed=1)
    expected = torch.stack([(d[:, i : i + 3] * g).sum(dim=1) for i in range(m)], dim=1)
    torch.testing.assert_close(((g @ G.T) * (d @ B.T)) @ A.T, expected, rtol=1e-12, atol=1e-12)
    assert B.shape == (m + 2, m + 2)


@pytest.mark.parametrize("chunk", [1, 2**24])  # one row of tiles at a time; all at once
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1), (3, 12), (13, 2)])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("m", [2, 4])
def test_it_is_the_convolution(m, batch, size, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    x, weight, bias = draw(batch, 5, *size), draw(6, 5, 3, 3, seed=1), draw(6, seed=2)
    expected = F.conv2d(x, weight, bias, padding=1)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(convolve(given, transformed(weight, m), m, bias), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("m", "times"), [(2, 4), (4, 12)])
@pytest.mark.parametrize("c", [64, 320])
def test_rounding_in_float32(m, times, c):
    """Each of the steps of eq. 8 is a sum of products, whose error is at most (terms) ε Σ|products| (Higham, Accuracy
    and Stability, eq. 3.5): so the whole one's is at most that of the same formula with absolute values, times the
    number of terms, and ε. Typically it is far less, and some times the direct convolution's."""
    x, weight = draw(2, c, 11, 9, dtype=torch.float32), draw(48, c, 3, 3, seed=1, dtype=torch.float32)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = convolve(x, transformed(weight, m), m).double() - exact
    B, G, A = (matrix.abs() for matrix in matrices(m))
    n, (h, w) = m + 2, x.shape[2:]
    down, across = -(-h // m), -(-w // m)
    padded = F.pad(x.double().abs(), (1, across * m + 1 - w, 1, down * m + 1 - h))
    tiles = padded.unfold(2, n, m).unfold(3, n, m)  # b c down across n n
    U = torch.einsum("xi,ocij,yj->ocxy", G, weight.double().abs(), G)
    M = torch.einsum("ocxy,xi,bcdaij,yj->bodaxy", U, B, tiles, B)
    bound = torch.einsum("ix,bodaxy,jy->bodiaj", A, M, A).flatten(4, 5).flatten(2, 3)[..., :h, :w]
    assert (error.abs() <= (c + 4 * n + 1) * EPS * bound).all()
    direct = F.conv2d(x, weight, padding=1).double() - exact
    assert 0 < error.square().mean().sqrt() <= times * direct.square().mean().sqrt()


@pytest.mark.parametrize("m", [2, 4])
def test_gradient(m):
    conv = nn.Conv2d(3, 4, 3, padding=1).double().requires_grad_(False)
    forward = ConvolutionForward(conv, ALL[m])
    x = draw(2, 3, 5, 7).requires_grad_()
    f = lambda x: Frozen.apply(x, lambda x: forward.forward(m, x), lambda g: forward.backward(m, g))  # noqa: E731
    assert torch.autograd.gradcheck(f, x)
    torch.testing.assert_close(f(x), conv(x))


@pytest.mark.parametrize("layer", [nn.Linear(40, 24), nn.Conv2d(40, 24, 1), nn.Conv2d(40, 24, 3, padding=1)])
def test_gradient_in_float32_is_torch_s(layer):
    layer.requires_grad_(False)
    kind = LinearForward(layer) if layer.weight.shape[-1] != 3 else ConvolutionForward(layer, ALL[4])
    shape = (2, 77, 40) if isinstance(layer, nn.Linear) else (2, 40, 7, 9)
    x = draw(*shape, dtype=torch.float32).requires_grad_()
    out, expected = kind(x), layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    given = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, x, given)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_product_is_the_product():
    x, weight, bias = draw(3, 7, 20, dtype=torch.float32), draw(33, 20, seed=1, dtype=torch.float32), draw(33, seed=2)
    expected = F.linear(x.double(), weight.double(), bias)
    torch.testing.assert_close(product(x, pack(weight), bias.float()).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_networks_compute_the_same_and_no_trace_is_left(tiny):
    latents, t, context = (
        draw(3, 4, 7, 8, dtype=torch.float32),
        torch.tensor([5, 300, 900]),
        tiny.encode_prompt("a cat"),
    )
    context = context.expand(3, -1, -1)
    alone = tiny.unet(latents, t, context), tiny.decode(latents), tiny.encode(draw(1, 3, 10, 12)).mean
    packed, fast = both()
    with packed.attached(tiny), fast.attached(tiny):
        with_it = tiny.unet(latents, t, context), tiny.decode(latents), tiny.encode(draw(1, 3, 10, 12)).mean
    for got, expected in zip(with_it, alone):
        assert not torch.equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.std().item())
    after = tiny.unet(latents, t, context), tiny.decode(latents), tiny.encode(draw(1, 3, 10, 12)).mean
    assert all(torch.equal(got, expected) for got, expected in zip(after, alone))
    assert not [m for network in (tiny.unet, tiny.vae) for m in network.modules() if "forward" in vars(m)]


def test_small_layers_are_torch_s_own(tiny):
    """So small a model is sampled to the same bits."""
    options = {"num_inference_steps": 2, "output": "latents"}
    alone = minti.sample(tiny, PROMPTS, generator=seeded(), **options)
    with Winograd().attached(tiny), Packed().attached(tiny):
        assert torch.equal(minti.sample(tiny, PROMPTS, generator=seeded(), **options), alone)
    assert [tile(*sizes) for sizes in ((4, 320, 64, 64), (320, 320, 64, 64), (1280, 1280, 8, 8))] == [0, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_torch_s_own(dtype):
    conv = nn.Conv2d(8, 8, 3, padding=1).to(dtype).requires_grad_(False)
    x = draw(1, 8, 5, 5, dtype=dtype)
    assert torch.equal(ConvolutionForward(conv, ALL[4])(x), conv(x))


def test_weights_that_change_or_learn_are_not_stale():
    conv, x = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), draw(1, 8, 6, 6, dtype=torch.float32)
    forward = ConvolutionForward(conv, ALL[2])
    before = forward(x)
    conv.weight.mul_(2)
    torch.testing.assert_close(forward(x) - conv.bias[:, None, None], 2 * (before - conv.bias[:, None, None]))
    conv.weight.data = -conv.weight.data
    torch.testing.assert_close(forward(x), conv(x), rtol=1e-4, atol=1e-5)
    conv.requires_grad_(True)
    assert torch.equal(forward(x), conv(x)) and forward(x).requires_grad


def steps(model, fast):
    word = wrapper(model, steps=3, gradient_checkpointing=True)
    run = learning(word)
    if not fast:
        return [state.loss for state in run], word.embedding.values.detach().clone()
    packed, filtered = both()
    with packed.attached(model), filtered.attached(model):
        return [state.loss for state in run], word.embedding.values.detach().clone()


def test_a_word_learns_the_same(tiny):
    """Three training steps, with gradient checkpointing: losses and embedding vectors within rounding."""
    (losses, values), (expected, vectors) = steps(copy.deepcopy(tiny), True), steps(tiny, False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(values, vectors, rtol=0, atol=1e-3 * vectors.std().item())


def test_a_lora_s_gradient(tiny):
    lora = random_lora(tiny, layers=("attention", "projections", "feed_forward"))
    tiny.freeze()
    latents, context = draw(2, 4, 8, 8, dtype=torch.float32), tiny.encode_prompt(PROMPTS).detach()

    def gradients():
        loss = tiny.unet(latents, torch.tensor([400, 600]), context).square().mean()
        return torch.autograd.grad(loss, lora.trainable())

    packed, fast = both()
    with lora.attached(tiny):
        expected = gradients()
        with packed.attached(tiny), fast.attached(tiny):
            got = gradients()
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())
