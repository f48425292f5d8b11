"""LoRA files of diffusers and of kohya's trainer, with tensors of these names:

- diffusers: `unet.mid_block.attentions.0.proj_in.lora.down.weight`, and `up`; sometimes `lora_A` and `lora_B` instead;
  `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight`;
- kohya's trainer, so AUTOMATIC1111: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `lora_up`, `alpha`;
  `lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minti.adapters.lora import LoRA, Pair, layers_of
from minti.formats.tensors import read_content, write_tensors
from minti.model import StableDiffusion
from minti.runs.messages import short_repr, shortened

KEY = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|up|A|B)\.weight|\.(alpha))")
OTHER_KINDS = re.compile(
    r"(?P<LoCon>lora_mid)|(?P<DoRA>dora_scale|lora_magnitude_vector)|(?P<LoHa>hada_)|(?P<LoKr>lokr_)|(?P<OFT>oft_)|"
    r"(?P<IA3>ia3|on_input)|(?P<SDXL>lora_te2_|text_encoder_2)"
)
CONVOLUTIONS = ("proj_in", "proj_out", "conv_shortcut")  # 1 × 1: their matrices have four dimensions in files
CONFIG = "lora_adapter_metadata"  # where diffusers has peft's config, as JSON


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
            tensors[f"{stem}{role}.weight"] = matrix[..., None, None] if name.endswith(CONVOLUTIONS) else matrix
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
    """The LoRA of a file, `.safetensors`, `.bin`, `.pt` or `.ckpt`, for this model; `lora.attached(model)` attaches it.
    Raises FileNotFoundError, ValueError: names the file and the key."""
    path = Path(path)
    content = read_content(path, ": no such file of a LoRA")
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} holds no LoRA; expected a file of diffusers or of kohya's trainer")
    layers = layers_of(model)
    called = {name: layer for layer in layers for name in _names(layer)}
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in content.items():
        other, match = OTHER_KINDS.search(key), KEY.fullmatch(key.replace(".processor.", "."))
        if other or not match:
            kind = f"{other.lastgroup}'s" if other else "unexpected"
            raise ValueError(f"{path}: {shortened(key)} is {kind}; minti reads plain LoRAs only")
        if match[1] not in called:
            raise ValueError(f"{path}: {shortened(key)} is for a layer that this model does not have")
        pair, role = found.setdefault(called[match[1]], {}), match[3] or match[2]
        role = {"A": "down", "B": "up"}.get(role, role)
        if role in pair:
            raise ValueError(f"{path}: {shortened(key)} says a second time what {called[match[1]]} has")
        pair[role] = tensor
    alphas = _alphas(path, found) if path.suffix == ".safetensors" else {}
    pairs = {layer: _pair(found[layer], alphas.get(layer), f"{path}: {layer}") for layer in layers if layer in found}
    lora = LoRA(model, pairs=pairs, weight=weight)
    lora.name = str(path)
    list(lora.beside(model))  # it fits, or says so
    return lora


def _names(layer: str) -> set[str]:
    """The names of a layer in files."""
    network, name = layer.split(".", 1)
    names = {name, name.removeprefix("text_model.")}
    prefixes = ("lora_unet_",) if network == "unet" else ("lora_te_", "lora_te1_")
    kohya = {prefix + name.replace(".", "_") for prefix in prefixes for name in names}
    old = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", name.removesuffix(".0"))  # diffusers' before 0.17
    return kohya | {prefix + name for prefix in ("", f"{network}.") for name in (*names, old)}


def _pair(tensors: Mapping[str, Any], alpha: Any, what: str) -> Pair:
    """The tensors of a layer as its pair; without an alpha it is the rank."""
    matrices = []
    for role in ("down", "up"):
        tensor = tensors.get(role)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{what} has half a pair, without numbers for its {role}; fetch or write the file again")
        if not tensor.is_floating_point() or tensor.ndim not in (2, 4) or tensor.shape[2:].numel() != 1:
            size = f"{tuple(tensor.shape)}, {tensor.dtype}"
            raise ValueError(f"{what}: {role} is {size}; expected a matrix, for minti reads no convolutions' (LoCon)")
        matrices.append(tensor.detach().float().flatten(1).clone())
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


def _alphas(path: Path, layers: Iterable[str]) -> dict[str, Any]:
    """The layers' alphas in peft's config, which is in diffusers' metadata."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(CONFIG, "{}")
    try:
        config, alphas = json.loads(text), {}
        for layer in layers:
            network, name = layer.split(".", 1)
            special = config.get(f"{network}.alpha_pattern", {}).items()  # by the ends of names
            usual = config.get(f"{network}.lora_alpha")
            alphas[layer] = next((alpha for end, alpha in special if f".{name}".endswith(f".{end}")), usual)
            if config.get(f"{network}.use_rslora"):
                raise ValueError
        return alphas
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path}: its {CONFIG} cannot be read, or asks for rsLoRA") from None
