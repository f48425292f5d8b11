"""LoRA files of diffusers, peft, kohya's trainer, OneTrainer and ComfyUI, with tensors of these names:

- diffusers: `unet.mid_block.attentions.0.proj_in.lora.down.weight`, and `up`; sometimes `lora_A` and `lora_B` instead;
  `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight`;
- peft's adapter folders: `base_model.model.mid_block.attentions.0.proj_in.lora_A.weight`;
- kohya's trainer, so AUTOMATIC1111: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `lora_up`, `alpha`;
  `lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight`;
- ComfyUI, OneTrainer: `diffusion_model.` or `unet.` before the layer's name in the original single file.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minti.adapters.lora import LoRA, Pair, layers_of
from minti.formats.single_file import unet_name
from minti.formats.strict import read_json
from minti.formats.tensors import content_type, read_content, write_tensors
from minti.model import StableDiffusion
from minti.runs.messages import short_repr, shortened
from minti.unet import UNetConfig

KEY = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.\w+)?\.weight|\.(alpha))")
OTHER_KINDS = {  # parts of keys -> whose they are
    "lora_mid": "LoCon's with a Tucker decomposition",
    "dora_scale|lora_magnitude_vector": "DoRA's",
    "hada_": "LoHa's",
    "lokr_": "LoKr's",
    "oft_": "OFT's",
    "ia3|on_input": "IA3's",
    r"\.[ab][12]\.weight": "GLoRA's",
    r"\.diff(_b)?$|w_norm": "a whole difference of LyCORIS",
    "bundle_emb": "a word that OneTrainer has bundled with it",
    "lora_te2_|text_encoder_2|clip_g": "SDXL's",
    r"^(unet|text_encoder):\d+:": "of cloneofsimo's trainer, which numbers the layers",
    r"^(lora_)?transformer[._]": "of a transformer, as FLUX and SD 3 are",
    "^(string_to_param|emb_params|emp_params|clip_l|<.*>)$": "a learned word's: load it as an embedding (--embedding)",
}
CONVOLUTIONS = ("proj_in", "proj_out", "conv_shortcut")  # 1 × 1: their matrices have four dimensions in files
CONFIG = "lora_adapter_metadata"  # where diffusers has peft's config, as JSON
SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights")  # of peft's config
OTHER_STARTS = ("pissa", "olora", "corda", "loftq")  # of peft, which take what they start from out of the weights
FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_model.bin")  # of diffusers, of peft


def save_lora(lora: LoRA, path: str | os.PathLike[str], format: str = "diffusers") -> None:
    """Writes a LoRA, without its weight. `format`: "diffusers", with α in the metadata (diffusers before 0.34 does not
    look there and takes α = r), or "kohya", with α as tensors. Raises OSError, ValueError: nothing is written."""
    if format not in ("diffusers", "kohya"):
        raise ValueError(f"format = {short_repr(format)}; expected 'diffusers' or 'kohya'")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: a LoRA is written as safetensors only; end the name in .safetensors")
    tensors: dict[str, Tensor] = {}
    for layer, pair in lora.pairs.items():
        network, name = layer.split(".", 1)
        if format == "kohya":
            stem = f"lora_{'unet' if network == 'unet' else 'te'}_{name.replace('.', '_')}"
            tensors[f"{stem}.alpha"], stem = torch.tensor(pair.alpha), f"{stem}.lora_"
        else:
            stem = f"{layer}.lora." if network == "unet" else f"{layer}.lora_linear_layer."
        for role, matrix in (("down", pair.down), ("up", pair.up)):
            convolution = matrix.ndim == 2 and (pair.down.ndim == 4 or name.endswith(CONVOLUTIONS))
            tensors[f"{stem}{role}.weight"] = matrix[..., None, None] if convolution else matrix
    first = next(iter(lora.pairs.values()))
    of_kohya = {"ss_network_dim": str(first.rank), "ss_network_alpha": str(first.alpha)}
    write_tensors(path, tensors, **(of_kohya if format == "kohya" else {CONFIG: _peft_config(lora)}))


def _peft_config(lora: LoRA) -> str:
    config: dict[str, Any] = {}
    for layer, pair in lora.pairs.items():
        network, name = layer.replace(".text_model.", ".").split(".", 1)  # peft compares the ends of names
        config.setdefault(f"{network}.target_modules", []).append(name)
        for key, plural, value in (("r", "rank", pair.rank), ("lora_alpha", "alpha", pair.alpha)):
            others = config.setdefault(f"{network}.{plural}_pattern", {})
            if value != config.setdefault(f"{network}.{key}", value):
                others[name] = value
    return json.dumps(config, indent=2, sort_keys=True)


def load_lora(model: StableDiffusion, path: str | os.PathLike[str], weight: float = 1.0) -> LoRA:
    """The LoRA of a file, `.safetensors`, `.bin`, `.pt` or `.ckpt`, or of diffusers' or peft's folder, for this model;
    `lora.attached(model)` attaches it. Raises FileNotFoundError, ValueError: names the file and the key."""
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FOLDER if (path / name).is_file()), path / FOLDER[0])
    content = read_content(path, ": no such file of a LoRA")
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} holds no LoRA; expected a file of diffusers or of kohya's trainer")
    layers = layers_of(model)
    called = {name: layer for layer in layers for name in _names(layer, model.unet.config)}
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in content.items():
        match = KEY.fullmatch(key.replace(".processor.", "."))
        other = next((whose for kind, whose in OTHER_KINDS.items() if re.search(kind, key)), None)
        if other or not match:
            raise ValueError(f"{path}: {shortened(key)} is {other or 'unexpected'}; minti reads plain LoRAs only")
        if match[1] not in called:
            raise ValueError(f"{path}: {shortened(key)} is for a layer that this model does not have")
        pair, role = found.setdefault(called[match[1]], {}), match[3] or match[2]
        role = {"A": "down", "B": "up"}.get(role, role)
        if role in pair:
            raise ValueError(f"{path}: {shortened(key)} says a second time what {called[match[1]]} has")
        pair[role] = tensor
    alphas = _alphas(path, found)
    pairs = {layer: _pair(found[layer], alphas.get(layer), f"{path}: {layer}") for layer in layers if layer in found}
    lora = LoRA(model, pairs=pairs, weight=weight)
    lora.name = str(path)
    list(lora.beside(model))  # it fits, or says so
    return lora


def _names(layer: str, config: UNetConfig) -> set[str]:
    """The names of a layer in files."""
    network, name = layer.split(".", 1)
    names, begins = {name, name.removeprefix("text_model.")}, ["", f"{network}.", "base_model.model."]
    if network == "unet":
        original = unet_name(f"{name}.weight", config).removesuffix(".weight").removeprefix("model.diffusion_model.")
        kohya, dotted = ("lora_unet_",), {begin + original for begin in ("diffusion_model.", "unet.")}
        flat = {name, original}
    else:
        kohya, dotted, flat = ("lora_te_", "lora_te1_"), set(), names
        begins += ["clip_l.", "text_encoders.clip_l.transformer."]
    flat = {begin + each.replace(".", "_") for begin in kohya for each in flat}
    old = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", name.removesuffix(".0"))  # diffusers' before 0.17
    return flat | dotted | {begin + each for begin in begins for each in (*names, old)}


def _pair(tensors: Mapping[str, Any], alpha: Any, what: str) -> Pair:
    """The tensors of a layer as its pair; without an alpha it is the rank."""
    matrices = []
    for role in ("down", "up"):
        tensor = tensors.get(role)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{what} has half a pair, without numbers for its {role}; fetch or write the file again")
        kernel = tensor.shape[2:]
        if not tensor.is_floating_point() or tensor.ndim not in (2, 4) or (role == "up" and kernel.numel() != 1):
            size = f"{tuple(tensor.shape)}, {tensor.dtype}"
            raise ValueError(f"{what}: {role} is {size}; expected a matrix, or a convolution's, of which up is 1 × 1")
        matrices.append(tensor.detach().float().clone() if kernel.numel() > 1 else tensor.detach().float().flatten(1))
    down, up = matrices
    if len(down) != up.shape[1] or len(down) == 0:
        raise ValueError(f"{what}: down is of rank {len(down)}, up of {up.shape[1]}; expected the same, from 1")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise ValueError(f"{what} has numbers that are not finite; learn it again")
    alpha = tensors.get("alpha", len(down) if alpha is None else alpha)
    try:
        return Pair(down, up, alpha)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{what}: alpha is {short_repr(alpha)}; expected a number above 0") from None


def _alphas(path: Path, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The layers' alphas in peft's config: in diffusers' metadata, of one network or of several, or in the folder. Of
    rsLoRA, whose scale is α / √r (arXiv 2312.03732), it is α √r, so that our α / r is the same."""
    text = "{}"
    if path.name.startswith("adapter_model.") and (config := path.with_name("adapter_config.json")).is_file():
        text = json.dumps(read_json(config))
    elif content_type(path) == "safetensors":
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CONFIG, "{}")
    alphas, other = {}, ""
    try:
        config = json.loads(text)
        networks = any(key.startswith(("unet.", "text_encoder.")) for key in config)
        for layer, tensors in found.items():
            network, name = layer.split(".", 1)
            alpha, special, rooted, start = (config.get(f"{network}.{key}" if networks else key) for key in SETTINGS)
            patterns = (special or {}).items()  # regular expressions of the ends of names
            alpha = next((own for key, own in patterns if re.match(rf"(.*\.)?({key})$", name)), alpha)
            other = start if str(start).startswith(OTHER_STARTS) else other
            rank = len(tensors["down"]) if isinstance(tensors.get("down"), Tensor) else 1
            alphas[layer] = alpha * math.sqrt(rank) if rooted and alpha is not None else alpha
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError, re.error):
        raise ValueError(f"{path}: its config of peft ({CONFIG}) cannot be read") from None
    if other:
        raise ValueError(
            f"{path} is peft's {other}, which changes the model's own weights, too; minti reads plain LoRAs"
        )
    return alphas
