"""The tiny decoder: equal to diffusers' AutoencoderTiny, in files of both namings, and what is refused."""

import json

import diffusers
import pytest
import torch
from helpers import PROMPTS, seeded
from safetensors.torch import load_file, save_file

import minti
from minti.adapters.tiny_decoder import TinyConfig, TinyDecoder, TinyVAE

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = {"decoder_block_out_channels": (16, 16), "num_decoder_blocks": (2, 1), "latent_channels": 4}


@pytest.fixture(scope="module")
def theirs():
    """One of diffusers for the small model's latents, two pixels wide."""
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(**SMALL).eval()


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def draw(*shape, seed=0):
    return 3 * torch.randn(shape, generator=seeded(seed))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 7, 5)])
def test_images_equal_diffusers_bit_for_bit(tiny, theirs, saved, shape):
    latents = draw(*shape)
    expected = theirs.decode(latents).sample
    assert expected.shape[2:] == (2 * shape[2], 2 * shape[3]) and expected.std() > 1e-3
    assert torch.equal(TinyVAE.from_pretrained(saved, tiny).decode(latents), expected)
    assert torch.equal(TinyVAE.from_pretrained(saved / WEIGHTS, tiny).decode(latents), expected)


@torch.no_grad()
def test_taesd_s_own_architecture_and_names():
    """The defaults are TAESD's, of 1.2 million numbers; its own file numbers the layers from 1, behind the clamp."""
    torch.manual_seed(0)
    theirs, decoder = diffusers.AutoencoderTiny().eval(), TinyDecoder(TinyConfig()).eval()
    decoder.load_state_dict(theirs.decoder.state_dict())
    assert sum(weight.numel() for weight in decoder.parameters()) == 1_222_531
    latents = draw(1, 4, 6, 5)
    assert torch.equal(decoder(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "taesd_decoder.pth"])
@torch.no_grad()
def test_the_original_file(name, tmp_path):
    """As `nn.Sequential(Clamp(), conv(4, 64), nn.ReLU(), Block, ...)` of TAESD's repository names its layers."""
    sd = minti.StableDiffusion.from_pretrained()
    vae = diffusers.AutoencoderTiny(decoder_block_out_channels=(64,) * 4).eval()
    sd.vae.config = minti.vae.VAEConfig()  # the latents of SD v1
    numbered = {}
    for key, tensor in vae.decoder.state_dict().items():
        _, number, rest = key.split(".", 2)
        numbered[f"{int(number) + 1}.{rest}"] = tensor
    assert {"1.weight", "3.conv.0.weight", "7.weight", "19.bias"} <= numbered.keys()
    save_file(numbered, tmp_path / name) if name.endswith("safetensors") else torch.save(numbered, tmp_path / name)
    latents = draw(2, 4, 5, 4)
    assert torch.equal(TinyVAE.from_pretrained(tmp_path / name, sd).decode(latents), vae.decode(latents).sample)


@torch.no_grad()
def test_attached_it_decodes_and_leaves_no_trace(tiny, theirs, saved):
    alone = minti.sample(tiny, PROMPTS, num_inference_steps=2, generator=seeded(), output="pixels")
    latents = minti.sample(tiny, PROMPTS, num_inference_steps=2, generator=seeded(), output="latents")
    decoder = TinyVAE.from_pretrained(saved, tiny)
    with decoder.attached(tiny):
        got = minti.sample(tiny, PROMPTS, num_inference_steps=2, generator=seeded(), output="pixels")
        with pytest.raises(ValueError, match="attached to the model already"):
            next(TinyVAE.from_pretrained(saved, tiny).hooks(tiny))
    # The model divides by the VAE's factor, the adapter multiplies by it.
    torch.testing.assert_close(got, theirs.decode(latents).sample, rtol=1e-5, atol=1e-5)
    again = minti.sample(tiny, PROMPTS, num_inference_steps=2, generator=seeded(), output="pixels")
    assert torch.equal(again, alone) and not torch.equal(again, got)
    assert "decode" not in vars(tiny.vae)


@torch.no_grad()
def test_diffusers_reads_what_is_saved(tiny, saved, tmp_path):
    ours = TinyVAE.from_pretrained(saved, tiny)
    ours.save(tmp_path / "again")
    read = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "again")
    latents = draw(1, 4, 8, 8)
    assert torch.equal(read.decode(latents).sample, ours.decode(latents))
    assert torch.equal(TinyVAE.from_pretrained(tmp_path / "again", tiny).decode(latents), ours.decode(latents))


def spoilt(folder, **config):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | config), encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"act_fn": "silu"}, r"config.json: act_fn = 'silu', but minti implements .* 'relu'"),
        ({"upsample_fn": "bilinear"}, r"upsample_fn = 'bilinear'"),
        ({"num_decoder_blocks": [2, 1, 1]}, r"the config's numbers do not go together .*expected as many"),
        ({"block_out_channels": [16, 8]}, r"the config's numbers do not go together .*all channels equal"),
        ({"num_decoder_blocks": [1, 1]}, rf"{WEIGHTS} (lacks|has an unexpected) .*does not fit the model's config"),
        ({"num_decoder_blocks": "many"}, r"num_decoder_blocks = 'many'"),
        ({"latent_channels": 8}, r"decoder.layers.0.weight has shape"),
    ],
)
def test_other_architectures_are_refused(tiny, saved, config, message):
    spoilt(saved, **config)
    with pytest.raises(ValueError, match=message):
        TinyVAE.from_pretrained(saved, tiny)


def test_other_files_are_refused(tiny, tiny_folder, saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing is missing; a tiny decoder is diffusers' folder"):
        TinyVAE.from_pretrained(tmp_path / "nothing", tiny)
    encoder = tmp_path / "taesd_encoder.safetensors"
    save_file({"0.weight": torch.zeros(64, 3, 3, 3)}, encoder)
    for wrong in (tiny_folder / "vae", encoder):
        with pytest.raises(ValueError, match=r"is no tiny decoder; expected a tensor decoder.layers.0.weight, of an"):
            TinyVAE.from_pretrained(wrong, tiny)
    cut = tmp_path / "taesd_decoder.safetensors"
    save_file({"1.weight": torch.zeros(64, 4, 3, 3)}, cut)
    with pytest.raises(ValueError, match=r"taesd_decoder.safetensors lacks tensor 1.bias and .* more"):
        TinyVAE.from_pretrained(cut, tiny)
    tensors = load_file(saved / WEIGHTS)
    tensors["decoder.layers.0.bias"] = tensors["decoder.layers.0.bias"] * float("nan")
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(ValueError, match=r"decoder.layers.0.bias has numbers that are not finite"):
        TinyVAE.from_pretrained(saved, tiny)


def test_other_latents_are_refused(saved):
    toybox = minti.StableDiffusion.from_pretrained()
    with pytest.raises(ValueError, match="for latents of 4 channels, 2 pixels wide; the model's are 8 channels, 4"):
        TinyVAE.from_pretrained(saved, toybox)
