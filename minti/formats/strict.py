"""Strict reading of model folders: what a file asks for and minti does not implement is refused, not ignored.

The core calls these by name (`utils.check`) and runs without them."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from minti.configs import ModelDefaults, TextConfig
from minti.runs.checks import check_range, heads
from minti.runs.messages import one_line, short_repr, shortened
from minti.runs.word_checks import check_templates
from minti.scheduler import PREDICTION_TYPES, SPACINGS, NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Keys of which minti implements these values only; "" stands for all keys that are not known. Those of UNet and VAE
# must be off, so that another architecture is refused; the other files repeat all that their writers can do.
OFF = (None, False)
ONLY: dict[type, dict[str, tuple[Any, ...]]] = {
    UNetConfig: {
        "": OFF,
        "act_fn": ("silu",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "time_embedding_type": ("positional",),
        "dropout": (0.0,),
        **dict.fromkeys(("resnet_time_scale_shift", "attention_type"), ("default",)),
        **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), (1,)),
        "transformer_layers_per_block": (1,),
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3,)),
    },
    VAEConfig: {
        "": OFF,
        "act_fn": ("silu",),
        "force_upcast": (True, False),
        **dict.fromkeys(("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"), (True,)),
    },
    TextConfig: {"hidden_act": ("quick_gelu", "gelu")},
    SchedulerConfig: {
        "prediction_type": PREDICTION_TYPES,
        "timestep_spacing": (*SPACINGS, None),
        "skip_prk_steps": (True,),
        "variance_type": ("fixed_small", None),
        **dict.fromkeys(("trained_betas", "clip_sample", "thresholding", "use_lu_lambdas"), OFF),
        **{f"use_{kind}_sigmas": OFF for kind in ("karras", "exponential", "beta", "flow")},
    },
    ModelDefaults: {"": OFF},
}
# Numbers with which a network would load all the same, and sample wrongly or fail later.
RANGES: dict[type, tuple[tuple[float, float, str], ...]] = {
    UNetConfig: (
        (1, 2**16, "sample_size attention_head_dim norm_num_groups"),
        (1e-12, 0.99, "norm_eps"),
        (0.0, 1.0, "freq_shift"),
    ),
    VAEConfig: ((1, 2**16, "norm_num_groups"), (1e-6, 1e6, "scaling_factor")),
    TextConfig: ((1, 128, "num_attention_heads"), (1e-12, 0.99, "layer_norm_eps")),
    SchedulerConfig: ((1, 100_000, "num_train_timesteps"), (1e-7, 0.999, "beta_start beta_end")),
}
IGNORED = ("addition_embed_type_num_heads", "sample_size", "down_block_types", "up_block_types")


def check_config(kind: type, values: Mapping[str, Any], origin: str, only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError: a value of a wrong type, or one that minti does not implement; names the file and the key.
    `only`: further keys and the values that they may have."""
    known = {field.name: field for field in fields(kind)}
    rules = ONLY[next(parent for parent in kind.__mro__ if parent in ONLY)] | only
    for key, value in values.items():
        passes = key in known or key in IGNORED or key.startswith("_")
        accepted = rules.get(key, None if passes else rules.get(""))
        value = tuple(value) if isinstance(value, list) else value
        if accepted is not None and value not in accepted:
            what = f"{origin}: {shortened(key)} = {short_repr(value)}, but minti implements SD v1, where it is "
            raise ValueError(what + " or ".join(map(repr, accepted)))
        if key in known:  # of the default's type; a whole number is a float, too
            default = known[key].default
            kinds = (
                (int, float) if isinstance(default, float) else (str, tuple) if key == "templates" else type(default)
            )
            wrong = not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)
            if wrong and "None" not in str(known[key].type):
                raise ValueError(f"{origin}: {key} = {short_repr(value)}; expected such a value as {default!r}")


def check_made_config(config: Any, origin: str) -> None:
    """Raises ValueError: nothing could be learned or sampled with these values; names the file."""
    try:
        for least, most, names in next((RANGES[kind] for kind in RANGES if isinstance(config, kind)), ()):
            check_range(config, least, most, *names.split())
        if isinstance(config, SchedulerConfig):
            check_schedule(NoiseScheduler(config))
        if isinstance(config, TextConfig):
            heads(config.hidden_size, config.num_attention_heads)
        for templates in (config.templates, config.prompts) if isinstance(config, ModelDefaults) else ():
            check_templates(templates)
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{origin}: {one_line(error)}") from None


def check_schedule(scheduler: NoiseScheduler) -> None:
    """Raises ValueError: a schedule has timesteps without signal, or pure noise from which epsilon tells nothing."""
    config = scheduler.config
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        pure = "rescale_betas_zero_snr makes the last timestep pure noise, from which epsilon tells nothing"
        raise ValueError(f"{pure}; expected prediction_type 'v_prediction' or 'sample'")
    least = 0.0 if config.rescale_betas_zero_snr else 2.0**-126  # the least normal number of float32
    beyond = not 0 <= config.steps_offset <= config.num_train_timesteps
    if not scheduler.alphas_cumprod[-1] >= least or beyond:  # nor NaN
        raise ValueError(f"the schedule of {config} has timesteps without signal")


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name_in_file: Any) -> None:
    """Raises ValueError: a tensor is missing, unexpected, misshapen or damaged; names the file and the tensor."""
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        if keys:
            what = f"tensor {shortened(name_in_file(min(keys)))}" + f" and {len(keys) - 1} more" * (len(keys) > 1)
            raise ValueError(f"{path} {problem} {what}; it does not fit the model's config")
    for key, tensor in tensors.items():
        found, wanted = f"{path}: {name_in_file(key)} has shape {tuple(tensor.shape)}", tuple(expected[key].shape)
        if tensor.shape != wanted or tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            kind = f"{found}, {tensor.dtype}"
            raise ValueError(f"{kind}; by the model's config, {wanted} floating point numbers were expected")
        # No result would show it: fused attention takes scores that are NaN for masked ones, and log-variances that
        # are infinite are clamped.
        if re.search(r"\b(to_[qk]|[qk]_proj|quant_conv)\.", key) and not tensor.isfinite().all():
            raise ValueError(f"{found} and numbers that are not finite; fetch the file again")


def check_tokenizer_files(folder: Path) -> None:
    """Raises ValueError: a tokenizer's config names a file outside its folder, which transformers would open."""
    path = folder / "tokenizer_config.json"
    for key, value in (read_json(path) if path.is_file() else {}).items():
        names = [str(name) for name in (value if isinstance(value, list) else [value] if value else [])]
        opened = key.endswith(("_file", "_files")) and key != "special_tokens_map_file"  # a remark of the release
        if opened and any(str(Path(name)) != Path(name).name for name in names):
            raise ValueError(f"{path}: {key} = {value!r} is not a file beside it")


def check_parts(unet: UNet, vae: VAE, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Raises ValueError: the parts of a model do not go together, or were made for another purpose."""
    sizes, text, most = unet.config, text_encoder.config, tokenizer.model_max_length
    rows, last = text_encoder.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    channels, colours = (sizes.in_channels, sizes.out_channels), (vae.config.in_channels, vae.config.out_channels)
    if channels != (vae.config.latent_channels,) * 2 or colours != (3, 3):
        latents = f"the UNet has {channels} channels and the VAE {colours} and {vae.config.latent_channels}"
        raise ValueError(f"{latents}; minti implements text to image, not models made for inpainting or upscaling")
    if sizes.cross_attention_dim != text.hidden_size:
        width = f"a context {sizes.cross_attention_dim} numbers wide and the text encoder gives {text.hidden_size}"
        raise ValueError(f"the UNet expects {width}; they are of different models")
    if not isinstance(most, int) or not 3 <= most <= text.max_position_embeddings or last >= rows:
        tokens = f"{short_repr(most)} tokens, up to number {last}, and the text encoder can take 3 to "
        positions = f"{text.max_position_embeddings} and has {rows} rows"
        raise ValueError(f"the tokenizer makes prompts of {tokens}{positions}; they are of different models")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer of a folder. Raises FileNotFoundError, ValueError: a file is missing, damaged or elsewhere."""
    for name in () if (folder / "tokenizer.json").is_file() else ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; expected a CLIP tokenizer's vocab and merges")
    check_tokenizer_files(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer("a", padding="max_length", max_length=3, truncation=True)
    except Exception as error:  # of the tokenizers library some are no more than Exception
        raise ValueError(f"{folder} holds no whole CLIP tokenizer ({one_line(error)}); fetch it again") from None
    if tokenizer.model_max_length > 2**31:  # transformers' word for "not known"
        path = folder / "tokenizer_config.json"
        raise FileNotFoundError(f"{path} with a model_max_length is missing; in SD v1 that is 77")
    return tokenizer


def has_parts(folder: Path) -> None:
    """Raises FileNotFoundError: a model folder lacks a part."""
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; a model folder holds {', '.join(PARTS)}")


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Raises FileNotFoundError, ValueError: names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a model folder in the layout of SD v1.4")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a config: expected a JSON object, found {short_repr(content)}")
    return content
