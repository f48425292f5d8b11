"""LoRAs to and from files, by the names that their layers' tensors have there.

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
from safetensors.torch import save_file
from torch import Tensor

from minti.checkpoints.weights import read_pickle, read_tensors
from minti.machine.files import replacing
from minti.machine.messages import one_line, shortened, shown
from minti.model import StableDiffusion
from minti.parts.lora import LoRA, Pair, layers_of

KEY = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|up|A|B)\.weight|\.(alpha))")
OTHER_KINDS = re.compile(
    r"(?P<LoCon>lora_mid)|(?P<DoRA>dora_scale|lora_magnitude_vector)|(?P<LoHa>hada_)|(?P<LoKr>lokr_)|(?P<OFT>oft_)|"
    r"(?P<IA3>ia3|on_input)|(?P<SDXL>lora_te2_|text_encoder_2)"
)
CONVOLUTIONS = ("proj_in", "proj_out", "conv_shortcut")  # 1 × 1: their matrices have four dimensions in files
CONFIG = "lora_adapter_metadata"  # where diffusers has peft's config, as JSON


def save_lora(lora: LoRA, path: str | os.PathLike[str], format: str = "diffusers") -> None:
    """Writes a LoRA, but not its weight; whatever happens, a good file is not lost.

    `format`: "diffusers" or "kohya". diffusers' has α in its metadata, where diffusers 0.34 and newer look; a program
    that does not, takes α = r. kohya's has it as tensors.

    Raises ValueError: no such format, no `.safetensors`, or a number is not finite. OSError: it cannot be written.
    """
    if format not in ("diffusers", "kohya"):
        raise ValueError(f"format = {shown(format)}; expected 'diffusers' or 'kohya'")
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
            if not matrix.isfinite().all():
                raise ValueError(f"{path} is not written: {layer} is not finite; try a lower learning rate")
            matrix = matrix.detach().cpu().clone()
            tensors[f"{stem}{role}.weight"] = matrix[..., None, None] if name.endswith(CONVOLUTIONS) else matrix
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": "pt"} | (_kohya_words if format == "kohya" else _peft_config)(lora))


def _kohya_words(lora: LoRA) -> dict[str, str]:
    ranks, alphas = ({getattr(pair, what) for pair in lora.pairs.values()} for what in ("rank", "alpha"))
    one = lambda values: str(*values) if len(values) == 1 else "Dynamic"  # noqa: E731
    return {"ss_network_module": "networks.lora", "ss_network_dim": one(ranks), "ss_network_alpha": one(alphas)}


def _peft_config(lora: LoRA) -> dict[str, str]:
    config: dict[str, Any] = {}
    for layer, pair in lora.pairs.items():
        network, name = layer.replace(".text_model.", ".").split(".", 1)  # peft compares the ends of names
        config.setdefault(f"{network}.target_modules", []).append(name)
        for key, plural, value in (("r", "rank", pair.rank), ("lora_alpha", "alpha", pair.alpha)):
            others = config.setdefault(f"{network}.{plural}_pattern", {})
            if value != config.setdefault(f"{network}.{key}", value):
                others[name] = value
    return {CONFIG: json.dumps(config, indent=2, sort_keys=True)}


def load_lora(model: StableDiffusion, path: str | os.PathLike[str], weight: float = 1.0) -> LoRA:
    """The LoRA of a file, `.safetensors`, `.bin`, `.pt` or `.ckpt`, for this model; `lora.inside(model)` puts it in.

    Raises FileNotFoundError, ValueError: no such file, a damaged one, another kind of update, half a pair, numbers that
    are not finite, or a layer that the model has not or in another size; names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of a LoRA")
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} holds no LoRA; expected a file of diffusers or of kohya's trainer")
    layers = layers_of(model)
    called = {name: layer for layer in layers for name in _names(layer)}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        what = f"{path}: {shortened(key)}"
        other, match = OTHER_KINDS.search(key), KEY.fullmatch(key.replace(".processor.", "."))
        if other or not match:
            kind = f"{other.lastgroup}'s" if other else "unexpected"
            raise ValueError(f"{what} is {kind}; minti reads plain LoRAs only")
        role = match[3] or {"A": "down", "B": "up"}.get(match[2], match[2])
        numbers = _numbers(tensor, role, what)
        if match[1] not in called:
            raise ValueError(f"{what} is for a layer that this model does not have")
        found.setdefault(called[match[1]], {})[role] = numbers
    alphas = _alphas(path, found)
    pairs = {at: _pair(found[at], alphas.get(at), f"{path}: {at}") for at in layers if at in found}
    lora = LoRA(model, pairs=pairs, weight=weight)
    lora.name = str(path)
    lora.beside(model)
    return lora


def _names(layer: str) -> set[str]:
    """All that files call a layer."""
    network, name = layer.split(".", 1)
    names = {name, name.removeprefix("text_model.")}
    prefixes = ("lora_unet_",) if network == "unet" else ("lora_te_", "lora_te1_")
    kohya = {prefix + name.replace(".", "_") for prefix in prefixes for name in names}
    old = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", name.removesuffix(".0"))  # diffusers' before 0.17
    return kohya | {prefix + name for prefix in ("", f"{network}.") for name in (*names, old)}


def _numbers(tensor: Any, role: str, what: str) -> Tensor:
    """A matrix of the file, or alpha, in float32. Raises ValueError: it is none, or not finite."""
    plain = (
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
    )
    plain = plain and (tensor.is_floating_point() or (role == "alpha" and not tensor.is_complex()))
    shape = tuple(tensor.shape) if plain else "no tensor of numbers"
    if plain and tensor.ndim == 4 and shape[2:] != (1, 1):
        raise ValueError(f"{what} is LoCon's, for convolutions; minti reads plain LoRAs only")
    fits = plain and (tensor.numel() == 1 if role == "alpha" else tensor.ndim in (2, 4) and 0 not in shape)
    if not fits:
        raise ValueError(f"{what} is {shape}; expected {'one number' if role == 'alpha' else 'a matrix'}")
    numbers = tensor.detach().float().clone()
    if not numbers.isfinite().all():
        raise ValueError(f"{what} has numbers that are not finite; learn it again")
    return numbers if role == "alpha" else numbers.flatten(1)


def _pair(given: Mapping[str, Tensor], alpha: float | None, what: str) -> Pair:
    """The tensors of a layer as its pair; without an alpha it is the rank. Raises ValueError: they do not fit."""
    if missing := {"down", "up"} - given.keys():
        raise ValueError(f"{what} has half a pair: its {min(missing)} is missing")
    down, up = given["down"], given["up"]
    if len(down) != up.shape[1]:
        raise ValueError(f"{what} has a down of rank {len(down)} and an up of rank {up.shape[1]}; expected the same")
    alpha = given["alpha"].item() if "alpha" in given else len(down) if alpha is None else alpha
    if not isinstance(alpha, (int, float)) or not 0 < alpha < torch.finfo(torch.float32).max:
        raise ValueError(f"{what} has alpha = {shown(alpha)}; expected a number above 0")
    return Pair(down, up, alpha)


def _alphas(path: Path, layers: Iterable[str]) -> dict[str, Any]:
    """What peft's config, in diffusers' metadata, says of the layers' alphas. Raises ValueError: it is no config."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(CONFIG, "{}")
    alphas = {}
    try:
        config = json.loads(text)
        for layer in layers:
            network, name = layer.split(".", 1)
            if config.get(f"{network}.use_rslora"):
                raise ValueError("minti does not know use_rslora")
            special = config.get(f"{network}.alpha_pattern", {}).items()  # by the ends of names
            usual = config.get(f"{network}.lora_alpha")
            alphas[layer] = next((alpha for end, alpha in special if f".{name}".endswith(f".{end}")), usual)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its {CONFIG} cannot be read ({one_line(error)})") from None
    return alphas
