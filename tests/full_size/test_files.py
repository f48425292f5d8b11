"""The release's files: their bytes, what loading them takes, and the original single file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minti
from full_size.release import SIZES
from minti.formats.single_file import load_single_file, text_name, unet_name, vae_name
from minti.unet import UNetConfig
from minti.vae import VAEConfig


def test_the_files_have_the_bytes_of_the_release(release):
    """Names and shapes are right: header and data add up to the real files' sizes."""
    if release.is_file:
        pytest.skip("a single file; the sizes are those of the folder's files")
    assert {name: (release.folder / name).stat().st_size for name in SIZES} == SIZES


LOAD = """
import sys, resource, torch
from pathlib import Path
from full_size.release import Release
library, source, configs, dtype = sys.argv[1:]
load = getattr(Release(source, Path(configs), steps=0), library)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(getattr(torch, dtype))
model.unet.conv_in.weight.sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_loading_takes_no_more_memory_than_the_model(release, dtype):
    """Peak growth of the process: below 1.1 times the files, and no more than diffusers'."""
    if release.is_file:
        pytest.skip("a single file, of which converted parts stay mapped; the limit is a folder's")
    tests = Path(__file__).parents[1]

    def growth(library):
        output = subprocess.run(
            [sys.executable, "-c", LOAD, library, release.source, release.configs, dtype],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))},
        ).stdout
        return int(output.splitlines()[-1]) * 1024

    mine = growth("ours")
    assert mine < 1.1 * sum(SIZES.values())
    assert mine <= growth("theirs")


def test_original_checkpoint(ours, tmp_path):
    """sd-v1-4.ckpt with its averaged copy: the same weights as the folder's, and the copy on request."""
    state = {}
    for key, value in ours.unet.state_dict().items():
        state[unet_name(key, UNetConfig())] = value
        state[unet_name(key, UNetConfig(), ema=True)] = value.half()
    for key, value in ours.vae.state_dict().items():
        is_convolution = "mid_block.attentions" in key and value.ndim == 2
        state[vae_name(key, VAEConfig())] = value[..., None, None] if is_convolution else value
    state |= {text_name(key): value for key, value in ours.text_encoder.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 470000}, tmp_path / "sd-v1-4.ckpt")
    ours.tokenizer.save_pretrained(tmp_path / "tokenizer")
    del state
    model = minti.StableDiffusion.from_pretrained(tmp_path / "sd-v1-4.ckpt")
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(ours, part).state_dict()
        got = getattr(model, part).state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert torch.equal(model.encode_prompt("a cat"), ours.encode_prompt("a cat"))
    assert model.scheduler.config == ours.scheduler.config
    averaged, _, _ = load_single_file(tmp_path / "sd-v1-4.ckpt", None, torch.device("cpu"), ema=True)
    assert averaged.conv_in.weight.dtype == torch.float16
    (tmp_path / "sd-v1-4.ckpt").unlink()
