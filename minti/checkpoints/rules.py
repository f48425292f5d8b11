"""What a foreign config may say, and which parts go together: whatever is not of SD v1's architecture is refused.

A file is refused where minti would load it and draw wrongly, or where its numbers cannot be those of a network.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import CLIPTextModel, CLIPTokenizer

from minti.checkpoints.text_encoder import TextConfig
from minti.defaults import ModelDefaults
from minti.diffusion.betas import PREDICTION_TYPES, SPACINGS, SchedulerConfig
from minti.diffusion.scheduler import NoiseScheduler
from minti.machine.configs import check_range
from minti.machine.messages import shown
from minti.networks.controlnet import ControlNetConfig
from minti.networks.unet import UNet, UNetConfig
from minti.networks.vae import VAE, VAEConfig
from minti.templates import check_templates

OFF = (None, False)


@dataclass(frozen=True)
class Rules:
    """What one kind of config file may say; names of keys are separated by spaces.

    Attributes:
        accepted: of keys of which minti implements some values only, those.
        strict: what becomes of keys that are not known. True: they must be off (None or False), so that a checkpoint of
            another architecture is refused, and not loaded and drawn wrongly. False: they are passed over.
        ignored: keys that change nothing here.
        ranges: the least and the most of numbers.
        check: raises ValueError where the values do not go together.
    """

    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    strict: bool = True
    ignored: str = ""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    check: Callable[[Any], None] = lambda config: None

    def accepts(self, key: str, known: Container[str]) -> tuple[Any, ...] | None:
        """The values that a key may have; None: any."""
        for names, values in self.accepted.items():
            if key in names.split():
                return values
        passes = key in known or key in self.ignored.split() or key.startswith("_") or not self.strict
        return None if passes else OFF


def _check_levels(config: UNetConfig | VAEConfig) -> None:
    for key in ("block_out_channels", "conditioning_embedding_out_channels"):
        if not 1 <= len(getattr(config, key, "1")) <= 8:
            raise ValueError(f"{key} has {len(getattr(config, key))} levels; expected 1 to 8")


def _check_unet(config: UNetConfig) -> None:
    _check_levels(config)
    levels, heads = len(config.block_out_channels), config.attention_head_dim
    if any(channels % heads or channels < 4 for channels in config.block_out_channels):
        raise ValueError(
            f"block_out_channels = {config.block_out_channels}; expected multiples of attention_head_dim = {heads}"
        )
    for side in ("Down",) if isinstance(config, ControlNetConfig) else ("Down", "Up"):
        key, kinds = f"{side.lower()}_block_types", (f"CrossAttn{side}Block2D", f"{side}Block2D")
        value = getattr(config, key)
        if len(value) != levels or any(kind not in kinds for kind in value):
            raise ValueError(f"{key} = {shown(value)}; expected {levels} of {kinds}")


def _check_text(config: TextConfig) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden_size = {config.hidden_size} is no multiple of {config.num_attention_heads} heads")


def _check_scheduler(config: SchedulerConfig) -> None:
    check_range(config, 0, config.num_train_timesteps, "steps_offset")
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr makes the last timestep pure noise, from which epsilon tells nothing; expected "
            "prediction_type 'v_prediction' or 'sample'"
        )
    least = 0.0 if config.rescale_betas_zero_snr else 2.0**-126  # the least normal number of float32
    if not NoiseScheduler(config).alphas_cumprod[-1] >= least:  # nor NaN
        raise ValueError(f"the schedule of {config} has timesteps without signal")


def _check_defaults(config: ModelDefaults) -> None:
    check_templates(config.templates)
    check_templates(config.prompts)


RULES = {
    UNetConfig: Rules(
        accepted={
            "act_fn": ("silu",),
            "mid_block_type": ("UNetMidBlock2DCrossAttn",),
            "time_embedding_type": ("positional",),
            "resnet_time_scale_shift attention_type": ("default",),
            "downsample_padding mid_block_scale_factor transformer_layers_per_block resnet_out_scale_factor": (1,),
            "conv_in_kernel conv_out_kernel": (3,),
            "dropout": (0.0,),
            "conditioning_channels": (3,),  # of a ControlNet
            "controlnet_conditioning_channel_order": ("rgb",),
        },
        ignored="addition_embed_type_num_heads",
        ranges={
            "sample_size in_channels out_channels block_out_channels cross_attention_dim": (1, 2**16),
            "attention_head_dim norm_num_groups": (1, 2**16),
            "layers_per_block": (1, 16),
            "norm_eps": (1e-12, 1),
            "freq_shift": (0, 1),
        },
        check=_check_unet,
    ),
    VAEConfig: Rules(
        accepted={
            "act_fn": ("silu",),
            "mid_block_add_attention use_quant_conv use_post_quant_conv": (True,),
            "force_upcast": (True, False),
        },
        ignored="sample_size down_block_types up_block_types",
        ranges={
            "in_channels out_channels latent_channels block_out_channels norm_num_groups": (1, 2**16),
            "layers_per_block": (1, 16),
            "scaling_factor": (1e-6, 1e6),
        },
        check=_check_levels,
    ),
    TextConfig: Rules(
        accepted={"hidden_act": ("quick_gelu", "gelu")},
        strict=False,  # the file repeats the defaults of everything that Hugging Face's models can do
        ranges={
            "vocab_size": (1, 2**24),
            "hidden_size intermediate_size max_position_embeddings": (1, 2**16),
            "num_hidden_layers num_attention_heads": (1, 128),
            "layer_norm_eps": (1e-12, 1),
            "bos_token_id eos_token_id pad_token_id": (0, 2**24),
        },
        check=_check_text,
    ),
    SchedulerConfig: Rules(
        accepted={
            "prediction_type": PREDICTION_TYPES,
            "timestep_spacing": (*SPACINGS, None),
            "trained_betas clip_sample thresholding use_lu_lambdas": OFF,
            "use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_flow_sigmas": OFF,
            "skip_prk_steps": (True,),
            "variance_type": ("fixed_small", None),
        },
        strict=False,  # schedulers of many kinds write this file, each with keys of its own
        ranges={"num_train_timesteps": (1, 100_000), "beta_start beta_end": (1e-7, 0.999)},
        check=_check_scheduler,
    ),
    ModelDefaults: Rules(
        ranges={
            "guidance_scale": (-1e6, 1e6),
            "batch_size": (1, 100_000),
            "lora_learning_rate network_learning_rate": (0, 1e6),
            "tuning_steps class_pictures": (1, 10**9),
        },
        check=_check_defaults,
    ),
}
RULES[ControlNetConfig] = RULES[UNetConfig]


def check_parts(unet: UNet, vae: VAE, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Looks whether loaded parts go together.

    Raises ValueError: they are of different models, or of one for another purpose.
    """
    sizes, latent_channels, text = unet.config, vae.config.latent_channels, text_encoder.config
    if sizes.in_channels != latent_channels:
        raise ValueError(
            f"the UNet takes {sizes.in_channels} channels and the VAE makes {latent_channels}; minti implements text "
            "to image, not models made for inpainting or upscaling"
        )
    if sizes.cross_attention_dim != text.hidden_size:
        raise ValueError(
            f"the UNet expects a context {sizes.cross_attention_dim} numbers wide and the text encoder gives "
            f"{text.hidden_size}; they are of different models"
        )
    if sizes.out_channels != sizes.in_channels or not vae.config.in_channels == vae.config.out_channels == 3:
        raise ValueError("the UNet must give as many channels as it takes, and the VAE must take and give three")
    most, positions = tokenizer.model_max_length, text.max_position_embeddings
    if not isinstance(most, int) or not 3 <= most <= positions:
        raise ValueError(
            f"the tokenizer makes prompts of {shown(most)} tokens (its model_max_length), and the text encoder can "
            f"take 3 to {positions}; they are of different models"
        )
    rows, last = text_encoder.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    if last >= rows:
        raise ValueError(
            f"the tokenizer has tokens up to {last} and the text encoder {rows} rows; they are of different models"
        )
