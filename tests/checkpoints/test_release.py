"""SD v1.4's names and shapes, without its numbers: torch's meta device has none."""

import inspect

import diffusers
import pytest
import torch
from full_size.release import SIZES, header, old_name, weights, write_configs

from minti.configs import TextConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tensors of the release's files, as minti's configs of SD v1 make diffusers and transformers name them."""
    folder = tmp_path_factory.mktemp("release")
    write_configs(folder)
    with torch.device("meta"):
        return {name: weights(name, folder) for name in SIZES}


def test_the_files_have_the_bytes_of_the_release(files):
    """Header and data add up to the real files' sizes, which one letter or one number more would change."""
    sizes = {name: len(header(tensors)) + sum(t.nbytes for t in tensors.values()) for name, tensors in files.items()}
    assert sizes == SIZES


def test_the_networks_have_its_names_and_shapes(files):
    """minti's own classes: a tensor for each one in the files, of the same shape."""
    with torch.device("meta"):
        unet, vae = UNet(UNetConfig()).state_dict(), VAE(VAEConfig()).state_dict()
    old = {old_name(key): value for key, value in vae.items()}
    for ours, (name, theirs) in zip((unet, old), list(files.items())[:2]):
        assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}, name
    words = files["text_encoder/model.safetensors"]["text_model.embeddings.token_embedding.weight"]
    assert words.shape == (TextConfig().vocab_size, TextConfig().hidden_size) == (49408, 768)


@pytest.mark.parametrize(
    "config, theirs, keys",
    [
        (
            UNetConfig(),
            diffusers.UNet2DConditionModel,
            "norm_num_groups norm_eps attention_head_dim flip_sin_to_cos freq_shift",
        ),
        (VAEConfig(), diffusers.AutoencoderKL, "norm_num_groups scaling_factor"),
    ],
    ids=["unet", "vae"],
)
def test_what_no_shape_tells(config, theirs, keys):
    """diffusers' defaults for these are SD v1's."""
    defaults = inspect.signature(theirs.__init__).parameters
    for key in keys.split():
        assert getattr(config, key) == defaults[key].default, key
