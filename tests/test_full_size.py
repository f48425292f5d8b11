"""SD v1.4 at its full size: the release's configs, tokenizer, names and byte layout, with random weights.

Both libraries open the same files; everything is compared in float32 on the CPU and is equal bit for bit. Skipped where
the release's configs and tokenizer (`../shared/sd-v1-4`) are not at hand. Needs 15 GB of memory and of disk.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel

import minti
from minti.checkpoints.single_file import load_single_file, text_name, unet_name, vae_name
from minti.checkpoints.weights import load_unet, read_tensors
from minti.networks.unet import UNetConfig
from minti.networks.vae import VAEConfig
from minti.text import add_tokens, placeholder_tokens

RELEASE = Path(__file__).parents[2] / "shared" / "sd-v1-4"
NETWORK = "diffusion_pytorch_model.safetensors"
# Bytes of the real files.
SIZES = {
    f"unet/{NETWORK}": 3_438_167_534,
    f"vae/{NETWORK}": 334_643_276,
    "text_encoder/model.safetensors": 492_265_879,
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RELEASE.is_dir(), reason=f"the configs of SD v1.4 are not at {RELEASE}"),
]


def write_unpadded(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """safetensors as in 2022: tensors by name, and no padding behind the header."""
    tensors = dict(sorted(tensors.items()))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        offsets = [offset, offset + size]
        header[key] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().tobytes())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The folder as it lies on disk, with random weights."""
    folder = tmp_path_factory.mktemp("full") / "sd-v1-4"
    shutil.copytree(RELEASE, folder)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(folder / "unet"))
    write_unpadded(folder / "unet" / NETWORK, unet.state_dict())
    del unet
    vae = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(folder / "vae")).state_dict()
    old = lambda key: re.sub(  # noqa: E731
        r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)(?=\.)", lambda match: OLD_ATTENTION[match[0]], key
    )
    write_unpadded(folder / "vae" / NETWORK, {old(key): value for key, value in vae.items()})
    text = CLIPTextModel(CLIPTextConfig(**json.loads((folder / "text_encoder/config.json").read_text()))).state_dict()
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write_unpadded(folder / "text_encoder/model.safetensors", tensors)
    yield folder
    shutil.rmtree(folder.parent)


@pytest.fixture(scope="module")
def ours(release):
    return minti.StableDiffusion.from_pretrained(release)


@pytest.fixture(scope="module")
def theirs(release):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(release, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_files_have_the_bytes_of_the_release(release):
    """Names and shapes are right: header and data add up to the real files' sizes."""
    assert {name: (release / name).stat().st_size for name in SIZES} == SIZES


LOAD = """
import sys, resource, torch
if sys.argv[1] == "minti":
    import minti
    load = lambda: minti.StableDiffusion.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
else:
    import diffusers
    load = lambda: diffusers.StableDiffusionPipeline.from_pretrained(
        sys.argv[2], safety_checker=None, feature_extractor=None, torch_dtype=getattr(torch, sys.argv[3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load()
model.unet.conv_in.weight.sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_loading_takes_no_more_memory_than_the_model(release, dtype):
    """Peak growth of the process: below 1.1 times the files, and no more than diffusers'."""

    def growth(library):
        output = subprocess.run(
            [sys.executable, "-c", LOAD, library, str(release), dtype],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        ).stdout
        return int(output.splitlines()[-1]) * 1024

    mine = growth("minti")
    assert mine < 1.1 * sum(SIZES.values())
    assert mine <= growth("diffusers")


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 4, 64, 64), (1, 4, 48, 72), (1, 4, 33, 40)])
def test_unet(ours, theirs, shape):
    latents, context = torch.randn(shape, generator=seeded()), torch.randn(shape[0], 77, 768, generator=seeded(1))
    timesteps = torch.tensor([981, 1])[: shape[0]]
    expected = theirs.unet(latents, timesteps, context).sample
    assert expected.std() > 1e-3
    assert torch.equal(ours.unet(latents, timesteps, context), expected)


def test_unet_in_bfloat16(ours, release):
    """Prediction and gradient on the context differ from float32 by at most 1.1 times what diffusers' do."""
    latents, context = torch.randn(1, 4, 64, 64, generator=seeded()), torch.randn(1, 77, 768, generator=seeded(1))

    def run(unet, dtype=torch.bfloat16):
        inputs = context.to(dtype).requires_grad_(True)
        predicted = unet(latents.to(dtype), torch.tensor([601]), inputs)
        predicted = predicted if torch.is_tensor(predicted) else predicted.sample
        (gradient,) = torch.autograd.grad(predicted.float().square().mean(), inputs)
        return predicted.detach().float(), gradient.float()

    exact = run(ours.unet, torch.float32)
    mine = run(load_unet(release / "unet", torch.bfloat16, torch.device("cpu")))
    load = diffusers.UNet2DConditionModel.from_pretrained
    theirs = run(load(release / "unet", torch_dtype=torch.bfloat16).requires_grad_(False))
    for true, got, other in zip(exact, mine, theirs):
        assert 0 < (got - true).norm() <= 1.1 * (other - true).norm()


@torch.no_grad()
def test_vae(ours, theirs):
    pixels = torch.rand(1, 3, 512, 512, generator=seeded()) * 2 - 1
    expected, got = theirs.vae.encode(pixels).latent_dist, ours.encode(pixels)
    assert torch.equal(got.mean, expected.mean)
    assert torch.equal(got.logvar, expected.logvar)
    latents = expected.sample(seeded(1))
    assert torch.equal(got.sample(seeded(1)), latents)
    assert torch.equal(ours.vae.decode(latents), theirs.vae.decode(latents).sample)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_text(ours, theirs):
    prompts = ["", "A photo of a Cat, wearing 3 hats!", "naïve café 日本 🙂", "a very long prompt " * 30]
    expected, _ = theirs.encode_prompt(prompts, torch.device("cpu"), 1, False)
    assert torch.equal(ours.encode_prompt(prompts), expected)


def test_gradient_on_the_embedding(release, theirs):
    """d loss / d embedding rows, through the frozen UNet and text encoder; a concept of two vectors."""
    ours = minti.StableDiffusion.from_pretrained(release)
    rows = torch.randn(2, 768, generator=seeded()) * 0.02
    add_tokens(ours.tokenizer, ours.text_encoder, placeholder_tokens("<Cat>", 2), rows)
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


def test_two_steps_of_the_pipeline(ours, theirs):
    """PNDM, as the release asks for: the same picture, byte for byte; it varies, and the prompt matters."""
    options = {"num_inference_steps": 2, "generator": seeded()}
    expected = theirs("a photo of a cat", **options).images[0]
    options["generator"] = seeded()
    steps = list(minti.sample_steps(ours, "a photo of a cat", sampler="pndm", **options))
    with torch.no_grad():
        picture = minti.images.to_pil(ours.decode(steps[-1].latents))[0]
    assert picture.tobytes() == expected.tobytes()
    assert np.asarray(picture).std() > 1
    options["generator"] = seeded()
    other = next(minti.sample_steps(ours, "an oil painting", sampler="pndm", **options))
    assert not torch.equal(other.latents, steps[0].latents)


def test_original_checkpoint(ours, release, tmp_path):
    """sd-v1-4.ckpt with its averaged copy: the same weights as the folder's, and the copy on request."""
    state = {}
    for key, value in read_tensors(release / "unet" / NETWORK).items():
        state[unet_name(key, UNetConfig())] = value
        state[unet_name(key, UNetConfig(), ema=True)] = value.half()
    for key, value in ours.vae.state_dict().items():
        is_convolution = "mid_block.attentions" in key and value.ndim == 2
        state[vae_name(key, VAEConfig())] = value[..., None, None] if is_convolution else value
    state |= {text_name(key): value for key, value in ours.text_encoder.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 470000}, tmp_path / "sd-v1-4.ckpt")
    shutil.copytree(release / "tokenizer", tmp_path / "tokenizer")
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
