"""Configs that ask for something else than SD v1's networks and schedule: loaded anyway, they would sample wrongly."""

import inspect
import json

import diffusers
import pytest

import minti
from minti.unet import UNetConfig
from minti.vae import VAEConfig

UNET, VAE = "unet/config.json", "vae/config.json"
TEXT, SCHEDULE = "text_encoder/config.json", "scheduler/scheduler_config.json"
OTHERS = [
    (UNET, "act_fn", "gelu"),
    (UNET, "resnet_time_scale_shift", "scale_shift"),
    (UNET, "resnet_skip_time_act", True),
    (UNET, "resnet_out_scale_factor", 2.0),
    (UNET, "mid_block_scale_factor", 2),
    (UNET, "encoder_hid_dim_type", "text_proj"),
    (UNET, "use_linear_projection", True),
    (UNET, "class_embed_type", "timestep"),
    (UNET, "addition_embed_type", "text"),
    (UNET, "time_embedding_type", "fourier"),
    (UNET, "dual_cross_attention", True),
    (UNET, "only_cross_attention", True),
    (UNET, "upcast_attention", True),
    (UNET, "cross_attention_norm", "layer_norm"),
    (UNET, "attention_type", "gated"),
    (UNET, "center_input_sample", True),
    (UNET, "downsample_padding", 0),
    (UNET, "dropout", 0.1),
    (UNET, "num_attention_heads", 4),
    (UNET, "attention_head_dim", [5, 10]),
    (UNET, "attention_head_dim", -4),
    (UNET, "attention_head_dim", 0),
    (UNET, "norm_num_groups", -8),
    (UNET, "norm_eps", -1),
    (UNET, "freq_shift", 2),
    (UNET, "sample_size", 0),
    (UNET, "flip_sin_to_cos", "yes"),
    (UNET, "block_out_channels", 32),
    (VAE, "act_fn", "relu"),
    (VAE, "scaling_factor", 0),
    (VAE, "shift_factor", 0.5),
    (VAE, "latents_mean", [0, 0, 0, 1]),
    (VAE, "latents_std", [1, 1, 1, 2]),
    (VAE, "scaling_factor", -1),
    (VAE, "norm_num_groups", -8),
    (VAE, "use_quant_conv", False),
    (VAE, "use_post_quant_conv", False),
    (VAE, "mid_block_add_attention", False),
    (TEXT, "hidden_act", "nothing"),
    (TEXT, "num_attention_heads", 5),
    (TEXT, "layer_norm_eps", 0),
    (TEXT, "hidden_size", "48"),
    (SCHEDULE, "prediction_type", "flow"),
    (SCHEDULE, "beta_schedule", "sigmoid"),
    (SCHEDULE, "beta_start", -1),
    (SCHEDULE, "beta_end", 1.5),
    (SCHEDULE, "trained_betas", [0.1, 0.2]),
    (SCHEDULE, "thresholding", True),
    (SCHEDULE, "clip_sample", True),
    (SCHEDULE, "timestep_spacing", "odd"),
    (SCHEDULE, "skip_prk_steps", False),
    (SCHEDULE, "variance_type", "fixed_large"),
    (SCHEDULE, "use_lu_lambdas", True),
    (SCHEDULE, "use_karras_sigmas", True),
    (SCHEDULE, "use_exponential_sigmas", True),
    (SCHEDULE, "use_beta_sigmas", True),
    (SCHEDULE, "steps_offset", -1),
    (SCHEDULE, "num_train_timesteps", 100_001),
    (SCHEDULE, "use_flow_sigmas", True),
    (SCHEDULE, "rescale_betas_zero_snr", True),  # with epsilon prediction
    (SCHEDULE, "num_train_timesteps", 0),
]


@pytest.mark.parametrize("file, key, value", OTHERS, ids=lambda value: str(value).split("/")[0])
def test_another_model_s_config_is_refused(folder, file, key, value):
    """In one line that names the file and says what it asks for."""
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(config | {key: value}), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        minti.StableDiffusion.from_pretrained(folder)
    said = str(caught.value)
    assert "\n" not in said and str(folder / file) in said
    assert key in said or str(value) in said


# What minti implements as a value or by the weights' shapes, so that the files of SD v1 hold it.
READ = {"down_block_types", "up_block_types", "mid_block_type", "sample_size", "addition_embed_type_num_heads"}
HARMLESS = READ | {"force_upcast"}  # of float16 in diffusers


@pytest.mark.parametrize(
    ("part", "kind"), [("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)], ids=["unet", "vae"]
)
def test_whatever_else_diffusers_networks_can_be_asked_for_is_refused(folder, part, kind):
    """Every key of theirs that minti's networks do not read, with another value than their default."""
    path = folder / part / "config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    read = {"unet": UNetConfig, "vae": VAEConfig}[part].__dataclass_fields__.keys() | HARMLESS
    others = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in read
    }
    assert len(others) > 5
    path.write_text(json.dumps(whole | others), encoding="utf-8")
    minti.StableDiffusion.from_pretrained(folder)
    for key, default in others.items():
        other = not default if isinstance(default, bool) else default + 1 if isinstance(default, int | float) else "x"
        path.write_text(json.dumps(whole | {key: other}), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"config\.json: {key} = .*, but minti implements SD v1"):
            minti.StableDiffusion.from_pretrained(folder)
