"""The ControlNet against diffusers, with random weights, also in the zero convolutions, and no tolerance."""

import diffusers
import pytest
import torch
from helpers import UNET as SMALL
from helpers import parse_config, random_controlnet

from minti.adapters.controlnet import ONLY, ControlNetConfig, ControlNetwork, copied
from minti.unet import UNet, UNetConfig

NETWORKS = {
    "as SD": (SMALL, (16, 32, 96, 256)),
    "as the toybox": (
        SMALL
        | {
            "in_channels": 8,
            "out_channels": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        (16, 32, 96),
    ),
    "a hint of the latents' size": (SMALL | {"flip_sin_to_cos": False, "freq_shift": 1}, (8,)),
}


def their_controlnet(config, widths):
    torch.manual_seed(0)
    return random_controlnet(diffusers.UNet2DConditionModel(**config), widths)


def question(config, widths, size=(8, 12)):
    """What the networks are asked: latents, timesteps, contexts and a hint."""
    x = torch.randn(2, config.get("in_channels", 4), *size)
    factor = 2 ** (len(widths) - 1)
    return x, torch.tensor([3, 700]), torch.randn(2, 7, 48), torch.rand(2, 3, *(side * factor for side in size))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@torch.no_grad()
def test_controlnet_equals_diffusers(name, size):
    config, widths = NETWORKS[name]
    theirs = their_controlnet(config, widths)
    ours = ControlNetwork(parse_config(ControlNetConfig, dict(theirs.config), **ONLY)).eval()
    ours.load_state_dict(theirs.state_dict())
    asked = question(config, widths, size)
    down, mid = theirs(*asked, return_dict=False)
    our_mid, our_down = ours(*asked)
    assert len(down) == len(our_down) and min(part.std() for part in (mid, *down)) > 0.01
    assert torch.equal(our_mid, mid)
    assert all(torch.equal(*pair) for pair in zip(our_down, down))


def test_gradients_equal_diffusers():
    config, widths = NETWORKS["as SD"]
    theirs = their_controlnet(config, widths)
    ours = ControlNetwork(parse_config(ControlNetConfig, dict(theirs.config), **ONLY))
    ours.load_state_dict(theirs.state_dict())
    asked = question(config, widths)
    down, mid = theirs(*asked, return_dict=False)
    sum(part.square().sum() for part in (*down, mid)).backward()
    mid, down = ours(*asked)
    sum(part.square().sum() for part in (*down, mid)).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad.any(), name
        assert torch.equal(parameter.grad, expected[name].grad), name


@torch.no_grad()
def test_a_copy_begins_as_diffusers_does():
    """The encoder half's weights, and zeros where diffusers has zeros; only the hint encoder is drawn."""
    config, widths = NETWORKS["as the toybox"]
    torch.manual_seed(0)
    their_unet = diffusers.UNet2DConditionModel(**config)
    theirs = diffusers.ControlNetModel.from_unet(their_unet, conditioning_embedding_out_channels=widths).state_dict()
    unet = UNet(parse_config(UNetConfig, dict(their_unet.config)))
    unet.load_state_dict(their_unet.state_dict())
    state = torch.get_rng_state()
    ours = copied(unet, 4, torch.Generator().manual_seed(1)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn comes from the generator that is given
    assert ours.keys() == theirs.keys()
    drawn = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    encoder = {key for key in ours if key.startswith("controlnet_cond_embedding.") and "conv_out" not in key}
    assert drawn == encoder
    for key in encoder:  # within torch's own bounds, and as spread
        bound = theirs[key.replace("bias", "weight")][0].numel() ** -0.5
        assert 0.7 * bound < ours[key].abs().max() <= bound
