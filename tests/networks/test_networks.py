"""The UNet and the VAE against diffusers, with random weights and no tolerance."""

import diffusers
import pytest
import torch
import torch.nn.functional as F
from helpers import UNET as SMALL
from helpers import VAE as SMALL_VAE
from helpers import parse_config
from torch import nn

from minti.evaluation.distribution import kl_to_standard_normal
from minti.layers import GEGLU, Attention, ResnetBlock, timestep_embedding
from minti.speed import bfloat16
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

UNETS = {
    "as SD": SMALL,
    "one level": SMALL
    | {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "as the toybox": SMALL
    | {
        "in_channels": 8,
        "out_channels": 8,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "sines first": SMALL | {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
}


def twins(theirs, ours_class, config_class):
    """Our network with the weights of theirs."""
    ours = ours_class(parse_config(config_class, dict(theirs.config))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (9, 13)])
@torch.no_grad()
def test_unet_equals_diffusers(name, size):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**UNETS[name]).eval()
    ours = twins(theirs, UNet, UNetConfig)
    x = torch.randn(2, ours.config.in_channels, *size)
    timesteps, context = torch.tensor([3, 700]), torch.randn(2, 7, 48)
    expected = theirs(x, timesteps, context).sample
    assert expected.std() > 0.01
    assert torch.equal(ours(x, timesteps, context), expected)


def test_unet_gradients_equal_diffusers():
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**SMALL)
    ours = twins(theirs, UNet, UNetConfig)
    x, timesteps, gradients = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), []
    context = torch.randn(2, 7, 48)
    for network in (lambda c: theirs(x, timesteps, c).sample, lambda c: ours(x, timesteps, c)):
        leaf = context.clone().requires_grad_()
        network(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().max() > 1e-4
    assert torch.equal(*gradients)


# --- seams ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_can_be_replaced_and_the_halves_parted():
    """The formula written out in place of `attend`; a right half from a left half's feature maps, twice."""
    torch.manual_seed(0)
    unet = UNet(parse_config(UNetConfig, SMALL)).eval()
    x, timesteps, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 7, 48)
    expected = unet(x, timesteps, context)
    time_emb = unet.embed_time(timesteps, x.dtype)
    features = unet.left(x, time_emb, context)
    assert torch.equal(unet.right(*features, time_emb, context), expected)
    assert torch.equal(unet.right(*features, time_emb, context), expected)
    layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
    for layer in layers:
        layer.attend = lambda q, k, v: torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
    torch.testing.assert_close(unet(x, timesteps, context), expected, rtol=1e-5, atol=1e-5)
    for layer in layers:
        layer.attend = lambda q, k, v: 0 * q
    assert not torch.allclose(unet(x, timesteps, context), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@torch.no_grad()
def test_a_hook_reaches_every_layer():
    """Once, also in bfloat16 on a CPU, where wide convolutions are matrix products; no forward rewrites a weight."""
    torch.manual_seed(0)
    unet = UNet(parse_config(UNetConfig, SMALL | {"block_out_channels": (32, 64, 1024)})).eval().bfloat16()
    vae = VAE(parse_config(VAEConfig, SMALL_VAE)).eval().bfloat16()
    bfloat16.accelerate(unet, vae)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    layers = [m for network in (unet, vae) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    reached = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, output: reached.append(layer))
    unet(torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([3]), torch.randn(1, 7, 48).bfloat16())
    vae.decode(vae.encode(torch.zeros(1, 3, 16, 16).bfloat16()).mean)
    assert len(reached) == len(layers) == len(set(reached))
    assert any(layer.out_channels >= 1024 and "forward" in vars(layer) for layer in layers if hasattr(layer, "stride"))
    now = unet.state_dict()
    assert all(torch.equal(now[name], was) and now[name].stride() == was.stride() for name, was in weights.items())


# --- what is kept for the backward pass -------------------------------------------------------------------------------


def plain_resnet(block, x):
    hidden = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
    return x + hidden


def plain_geglu(block, x):
    value, gate = block.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate)


@pytest.mark.parametrize(
    ("block", "plain", "shape"),
    [
        (ResnetBlock(32, 32, groups=8, eps=1e-5), plain_resnet, (1, 32, 96, 96)),
        (GEGLU(64, 256), plain_geglu, (4096, 64)),
    ],
    ids=["resnet", "geglu"],
)
def test_gradient_checkpointing_keeps_less_and_changes_no_number(block, plain, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    block.requires_grad_(False)

    def run(function):
        kept, leaf = [], x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
            result = function(leaf)
        result.square().mean().backward()
        return result.detach(), leaf.grad, sum(kept)

    result, gradient, kept = run(block)
    expected, expected_gradient, all_kept = run(lambda x: plain(block, x))
    assert torch.equal(result, expected)
    assert torch.equal(gradient, expected_gradient)
    assert kept < 0.7 * all_kept  # of a GEGLU two thirds: value and gate, but not the gate's GELU


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_vae_equals_diffusers(layers, batch):
    torch.manual_seed(0)
    config = SMALL_VAE | {
        "layers_per_block": layers,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    theirs = diffusers.AutoencoderKL(**config).eval()
    ours = twins(theirs, VAE, VAEConfig)
    pixels = torch.rand(batch, 3, 16, 24) * 2 - 1
    expected, got = theirs.encode(pixels).latent_dist, ours.encode(pixels)
    assert torch.equal(got.mean, expected.mean)
    assert torch.equal(got.std, expected.std)
    draw = expected.sample(torch.Generator().manual_seed(5))
    assert torch.equal(got.sample(torch.Generator().manual_seed(5)), draw)
    assert torch.equal(ours.decode(draw), theirs.decode(draw).sample)
    torch.testing.assert_close(kl_to_standard_normal(got), expected.kl())


def test_vae_logvar_is_clamped_and_sizes_are_checked():
    vae = VAE(VAEConfig(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1))
    with torch.no_grad():
        vae.quant_conv.bias[4:] = 100.0
        assert vae.encode(torch.zeros(1, 3, 4, 4)).logvar.max() == 20
    with pytest.raises(ValueError, match="multiples of 2; got 4 x 5"):
        vae.encode(torch.zeros(1, 3, 4, 5))


def test_timestep_embedding_closed_form():
    """The first frequency is 1, the last 10000^(-(half - 1) / half)."""
    got = timestep_embedding(torch.tensor([7.0]), 8)
    omega = 10000 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(got, torch.cat([(7 * omega).cos(), (7 * omega).sin()])[None])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_linear_projection", True),
        ("addition_embed_type", "text_time"),
        ("attention_head_dim", [5, 10]),
        ("act_fn", "relu"),
    ],
)
def test_another_architecture_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"{key} = "):
        parse_config(UNetConfig, {key: value})


@torch.no_grad()
def test_large_batches_are_decoded_in_slices(tiny):
    """Large images one at a time, small ones together."""
    latents = torch.randn(3, 4, 600, 500, generator=torch.Generator().manual_seed(0))
    parts = []
    tiny.vae.decode = lambda latents: parts.append(len(latents)) or latents[:, :3]
    assert tiny.decode(latents).shape == (3, 3, 600, 500)
    assert parts == [1, 1, 1]
    parts.clear()
    tiny.decode(latents[..., :32, :32])
    assert parts == [3]
