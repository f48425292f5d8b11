"""Configs that ask for something else than SD v1's networks and schedule: loaded anyway, they would draw wrongly."""

import json

import pytest

import minti

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
    (UNET, "flip_sin_to_cos", "yes"),
    (VAE, "act_fn", "relu"),
    (VAE, "scaling_factor", 0),
    (VAE, "shift_factor", 0.5),
    (VAE, "latents_mean", [0, 0, 0, 1]),
    (VAE, "use_quant_conv", False),
    (VAE, "mid_block_add_attention", False),
    (TEXT, "hidden_act", "nothing"),
    (TEXT, "num_attention_heads", 5),
    (SCHEDULE, "prediction_type", "flow"),
    (SCHEDULE, "beta_schedule", "sigmoid"),
    (SCHEDULE, "beta_start", -1),
    (SCHEDULE, "beta_end", 1.5),
    (SCHEDULE, "trained_betas", [0.1, 0.2]),
    (SCHEDULE, "thresholding", True),
    (SCHEDULE, "clip_sample", True),
    (SCHEDULE, "timestep_spacing", "odd"),
    (SCHEDULE, "use_flow_sigmas", True),
    (SCHEDULE, "rescale_betas_zero_snr", True),  # with epsilon prediction
    (SCHEDULE, "num_train_timesteps", 0),
]


@pytest.mark.parametrize("file, key, value", OTHERS, ids=lambda value: str(value).split("/")[0])
def test_another_model_s_config_is_refused(folder, file, key, value):
    """In one line that names the file and says what it asks for."""
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError) as caught:
        minti.StableDiffusion.from_pretrained(folder)
    said = str(caught.value)
    assert "\n" not in said and str(folder / file) in said
    assert key in said or str(value) in said
