"""MMDiT against diffusers' SD3Transformer2DModel, random weights, all names the same."""

import importlib
import sys
from dataclasses import asdict
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import seeded
from running import script_inside

sys.path.append(str(Path(__file__).parents[2] / "examples"))
mmdit = importlib.import_module("mmdit")
pytestmark = pytest.mark.fast


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
@pytest.mark.parametrize("shape", [(16, 16), (8, 12)])
def test_it_equals_diffusers(qk_norm, shape):
    """The whole model, and its first block, with as many parameters and no name left over."""
    config = mmdit.MMDiTConfig(
        sample_size=16,
        in_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        pos_embed_max_size=12,
        qk_norm=qk_norm,
    )
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(**asdict(config), caption_projection_dim=config.dim, out_channels=4).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = mmdit.MMDiT(config).eval()
    ours.load_state_dict(theirs.state_dict())
    g = seeded()
    latents, text = torch.randn(2, 4, *shape, generator=g), torch.randn(2, 7, 24, generator=g)
    pooled, t = torch.randn(2, 20, generator=g), torch.tensor([3.0, 801.0])
    with torch.no_grad():
        expected = theirs(latents, text, pooled, t).sample
        torch.testing.assert_close(ours(latents, t, text, pooled), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1
        x, c, y = (
            torch.randn(2, 9, 32, generator=g),
            torch.randn(2, 7, 32, generator=g),
            torch.randn(2, 32, generator=g),
        )
        of_c, of_x = theirs.transformer_blocks[0](x, c, y)
        for got, wanted in zip(ours.transformer_blocks[0](x, c, y), (of_x, of_c)):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_positions_are_those_of_diffusers():
    config = mmdit.MMDiTConfig(sample_size=20, pos_embed_max_size=24, num_attention_heads=2, num_layers=1)
    theirs = diffusers.models.embeddings.get_2d_sincos_pos_embed(config.dim, 24, base_size=10)
    torch.testing.assert_close(mmdit.position_embedding(config)[0], theirs.float(), rtol=0, atol=1e-6)


def test_sd_3_medium_has_two_billion_parameters(tmp_path):
    """As many as diffusers' of this size; the position table is no parameter."""
    size = mmdit.MMDiTConfig()
    with torch.device("meta"):
        theirs = diffusers.SD3Transformer2DModel(**asdict(size), caption_projection_dim=size.dim)
    count = sum(parameter.numel() for parameter in theirs.parameters()) / 1e6
    said = script_inside("mmdit.py", "--output", tmp_path).stdout
    assert f"| all | (2, 16, 128, 128) | {count:,.1f} |" in said
