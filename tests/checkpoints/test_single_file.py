"""The original release in one file, and that no pickled code is ever run."""

import json
import pickle
import re
import sys
import types
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import assert_same, parse_config
from safetensors.torch import load_file, save_file

import minti
from minti.configs import TextConfig
from minti.formats.single_file import load_single_file, read_file, text_name, unet_name, vae_name
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

NETWORK = "diffusion_pytorch_model"


def original_state(tiny_folder: Path) -> dict[str, torch.Tensor]:
    """The small model under the names that diffusers' own converter reads, with an averaged UNet and training state."""
    tensors = {}
    unet_config = parse_config(UNetConfig, json.loads((tiny_folder / "unet/config.json").read_text(encoding="utf-8")))
    vae_config = parse_config(VAEConfig, json.loads((tiny_folder / "vae/config.json").read_text(encoding="utf-8")))
    for key, value in load_file(tiny_folder / "unet" / f"{NETWORK}.safetensors").items():
        tensors[unet_name(key, unet_config)] = value
        tensors[unet_name(key, unet_config, ema=True)] = value + 1
    for key, value in load_file(tiny_folder / "vae" / f"{NETWORK}.safetensors").items():
        square = value[..., None, None] if "mid_block.attentions" in key and value.ndim == 2 else value
        tensors[vae_name(key, vae_config)] = square
    for key, value in load_file(tiny_folder / "text_encoder/model.safetensors").items():
        tensors[text_name(key.removeprefix("text_model."))] = value
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    tensors |= {"betas": torch.zeros(1000), "model_ema.decay": torch.tensor(0.9), "loss.logvar": torch.zeros(1)}
    return tensors


@pytest.fixture
def configs(tiny_folder):
    read = lambda part: json.loads((tiny_folder / part / "config.json").read_text(encoding="utf-8"))  # noqa: E731
    return (
        parse_config(UNetConfig, read("unet")),
        parse_config(VAEConfig, read("vae")),
        parse_config(TextConfig, read("text_encoder")),
    )


@pytest.fixture
def checkpoint(tiny_folder, tmp_path, monkeypatch):
    """A .ckpt with everything that the real one has, also a class of its training framework."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    content = {
        "state_dict": original_state(tiny_folder),
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: torch.zeros(3)}}],
        "global_step": 470000,
    }
    torch.save(content, tmp_path / "model.ckpt")
    monkeypatch.undo()
    return tmp_path / "model.ckpt"


def test_names_of_the_real_release():
    """Spot checks against names that anyone can look up in the original file, and that none occurs twice."""
    with torch.device("meta"):
        unet, vae = UNet(UNetConfig()).state_dict(), VAE(VAEConfig()).state_dict()
    names = {key: unet_name(key, UNetConfig()) for key in unet} | {key: vae_name(key, VAEConfig()) for key in vae}
    assert len(set(names.values())) == len(unet.keys() | vae.keys())
    prefix = "model.diffusion_model."
    for key, name in {
        "conv_in.weight": "input_blocks.0.0.weight",
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
        "down_blocks.1.attentions.0.proj_in.weight": "input_blocks.4.1.proj_in.weight",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "mid_block.resnets.1.time_emb_proj.weight": "middle_block.2.emb_layers.1.weight",
        "mid_block.attentions.0.norm.bias": "middle_block.1.norm.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight": (
            "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "conv_norm_out.weight": "out.0.weight",
        "conv_out.bias": "out.2.bias",
    }.items():
        assert unet_name(key, UNetConfig()) == prefix + name
    assert unet_name("conv_in.weight", UNetConfig(), ema=True) == "model_ema.diffusion_modelinput_blocks00weight"
    for key, name in {
        "encoder.conv_in.weight": "encoder.conv_in.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
        "decoder.mid_block.resnets.1.norm1.weight": "decoder.mid.block_2.norm1.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.3.upsample.conv.weight",
        "decoder.up_blocks.3.resnets.2.conv1.weight": "decoder.up.0.block.2.conv1.weight",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
        "quant_conv.weight": "quant_conv.weight",
    }.items():
        assert vae_name(key, VAEConfig()) == "first_stage_model." + name


def test_names_agree_with_the_converter_of_diffusers(tiny_folder, configs):
    """diffusers turns the file of `original_state` back into the small model."""
    from diffusers.loaders import single_file_utils as theirs

    state = original_state(tiny_folder)
    unet_config = dict(diffusers.UNet2DConditionModel.load_config(tiny_folder / "unet"))
    vae_config = dict(diffusers.AutoencoderKL.load_config(tiny_folder / "vae"))
    unet = theirs.convert_ldm_unet_checkpoint(dict(state), unet_config)
    vae = theirs.convert_ldm_vae_checkpoint(dict(state), vae_config)
    for converted, part in ((unet, "unet"), (vae, "vae")):
        expected = load_file(tiny_folder / part / f"{NETWORK}.safetensors")
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_single_file(tiny, checkpoint, configs, form):
    path = checkpoint
    if form == "safetensors":
        path = checkpoint.with_suffix(".safetensors")
        state = read_file(checkpoint)
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    networks = load_single_file(path, torch.float32, torch.device("cpu"), configs=configs)
    assert_same(minti.StableDiffusion(*networks, tiny.tokenizer, tiny.scheduler), tiny)
    averaged = load_single_file(path, None, torch.device("cpu"), ema=True, configs=configs)[0]
    assert torch.equal(averaged.conv_in.weight, tiny.unet.conv_in.weight + 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_a_weight_that_is_not_finite(tiny, checkpoint, configs, form):
    """Nothing is sampled, and it is named; what else the file holds may be as it likes."""
    state, path = read_file(checkpoint), checkpoint.with_suffix(f".{form}")
    state = {key: value.clone() for key, value in state.items()}
    save = save_file if form == "safetensors" else torch.save
    state["loss.logvar"].fill_(torch.nan)
    state["model_ema.diffusion_modelinput_blocks00weight"].view(-1)[-1] = torch.nan

    def draw(**options):
        save(state, path)
        networks = load_single_file(path, None, torch.device("cpu"), configs=configs, **options)
        model = minti.StableDiffusion(*networks, tiny.tokenizer, tiny.scheduler)
        minti.sample(model, "a cat", num_inference_steps=2, output="pixels")

    draw()
    for name, key in (
        ("model.diffusion_model.input_blocks.0.0.weight", "unet: conv_in.weight"),
        ("first_stage_model.post_quant_conv.bias", "vae: post_quant_conv.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", r"text_encoder: .*final_layer_norm\.bias"),
    ):
        was, state[name] = state[name], state[name].clone()
        state[name].view(-1)[-1] = torch.inf
        with pytest.raises(ValueError, match=f"numbers that are not finite: so has {key}; fetch the file again"):
            draw()
        state[name] = was
    with pytest.raises(ValueError, match=r"so has unet: conv_in\.weight; fetch"):
        draw(ema=True)


def test_a_single_file_whose_text_encoder_lost_a_level(tiny, checkpoint, configs, tmp_path):
    """Some merged files name it without `text_model.`."""
    state = read_file(checkpoint)
    renamed = {key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    torch.save(renamed, tmp_path / "merged.ckpt")
    networks = load_single_file(tmp_path / "merged.ckpt", torch.float32, torch.device("cpu"), configs=configs)
    assert_same(minti.StableDiffusion(*networks, tiny.tokenizer, tiny.scheduler), tiny)


def test_single_files_that_do_not_fit(checkpoint, configs, tmp_path):
    state = read_file(checkpoint)

    def load(tensors, **options):
        torch.save({"state_dict": tensors}, tmp_path / "other.ckpt")
        return load_single_file(tmp_path / "other.ckpt", None, torch.device("cpu"), configs=configs, **options)

    with pytest.raises(ValueError, match=r"other\.ckpt has no VAE of SD v1 \(such as first_stage_model\."):
        load({key: value for key, value in state.items() if "first_stage" not in key})
    with pytest.raises(ValueError, match="has no averaged UNet"):
        load({key: value for key, value in state.items() if "ema" not in key}, ema=True)
    lacking = dict(state)
    del lacking["model.diffusion_model.out.2.bias"]
    with pytest.raises(ValueError, match=r"lacks tensor model\.diffusion_model\.out\.2\.bias"):
        load(lacking)
    nine = state | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.weight has shape \(32, 9, 3, 3\)"):
        load(nine)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        minti.StableDiffusion.from_pretrained(tmp_path / "list.ckpt")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickled_code_is_not_run(tiny, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bad{suffix}"
    torch.save({"state_dict": {"a": Bomb()}, "<a>": Bomb()}, path)
    load = minti.StableDiffusion.from_pretrained if suffix == ".ckpt" else lambda p: minti.load_embeddings(tiny, p)
    with pytest.raises(ValueError, match=r"asks to run .*which minti refuses"):
        load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load(path)
    assert not (tmp_path / "exploded").exists()
