"""A ControlNet of SD v1's size, random in its zero convolutions, too: its answer, and the UNet's with it."""

import diffusers
import pytest
import torch
from helpers import seeded
from torch import nn

from minti.adapters.controlnet import ControlNet


@pytest.fixture(scope="module")
def control(theirs, tmp_path_factory):
    """diffusers', and the folder that it has written."""
    torch.manual_seed(0)
    network = diffusers.ControlNetModel.from_unet(theirs.unet).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("control")
    network.save_pretrained(folder)
    return network, folder


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_controlnet(ours, theirs, control, size):
    network, folder = control
    latents, context = torch.randn(1, 4, *size, generator=seeded(0)), torch.randn(1, 77, 768, generator=seeded(1))
    hint, t = torch.rand(1, 3, 8 * size[0], 8 * size[1], generator=seeded(2)), torch.tensor([601])
    down, mid = network(latents, t, context, hint, return_dict=False)
    expected = theirs.unet(
        latents, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    adapter = ControlNet.from_pretrained(folder, ours)
    adapter.hint = hint
    our_mid, our_down = adapter.answer(latents, t, context)
    assert len(our_down) == len(down) == 12
    assert torch.equal(our_mid, mid) and all(torch.equal(*pair) for pair in zip(our_down, down))
    alone = ours.unet(latents, t, context)
    with adapter.attached(ours):
        assert torch.equal(ours.unet(latents, t, context), expected)
    assert not torch.allclose(expected, alone, atol=1e-3 * alone.std().item())
