"""LoRAs to and from files, by the names that their layers' tensors have there.

- diffusers: `unet.mid_block.attentions.0.proj_in.lora.down.weight`, and `up`; sometimes `lora_A` and `lora_B` instead;
  `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight`;
- kohya's trainer, so AUTOMATIC1111: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `lora_up`, `alpha`;
  `lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight`.
"""

import json
import math
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
OTHERS = {  # by what is in their keys
    "a LoRA of convolutions (LoCon)": r"lora_mid\.",
    "a DoRA": r"dora_scale|lora_magnitude_vector",
    "a LoHa": r"hada_",
    "a LoKr": r"lokr_",
    "an OFT": r"oft_",
    "an IA3": r"ia3|on_input",
    "a LoRA for SDXL": r"lora_te2_|text_encoder_2\.",
}
CONVOLUTIONS = ("proj_in", "proj_out", "conv_shortcut")  # 1 × 1: their matrices have four dimensions in files
CONFIG = "lora_adapter_metadata"  # where diffusers has peft's config, as JSON

# --- writing ----------------------------------------------------------------------------------------------------------


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


# --- reading ----------------------------------------------------------------------------------------------------------


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
    called = {name: layer for layer in layers for name in _spellings(layer)}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        what = f"{path}: {shortened(key)}"
        kind = next((kind for kind, pattern in OTHERS.items() if re.search(pattern, key)), None)
        match = KEY.fullmatch(key.replace(".processor.", "."))
        if kind or not match:
            raise ValueError(f"{what} belongs to {kind or 'no LoRA that minti knows'}; minti reads plain LoRAs only")
        role = match[3] or {"A": "down", "B": "up"}.get(match[2], match[2])
        numbers = _numbers(tensor, what, role)
        if match[1] not in called:
            raise ValueError(f"{what} is for a layer that this model does not have")
        given = found.setdefault(called[match[1]], {})
        if given.setdefault(role, numbers) is not numbers:
            raise ValueError(f"{what} is there a second time, under another name")
    alphas = _alphas(path, found)
    pairs = {at: _pair(found[at], alphas.get(at), f"{path}: {at}") for at in layers if at in found}
    lora = LoRA(model, pairs=pairs, weight=weight)
    lora.name = str(path)
    lora.beside(model)
    return lora


def _spellings(layer: str) -> set[str]:
    """All that files call a layer."""
    network, name = layer.split(".", 1)
    names = {name, name.removeprefix("text_model.")}
    prefixes = ("lora_unet_",) if network == "unet" else ("lora_te_", "lora_te1_")
    kohya = {prefix + name.replace(".", "_") for prefix in prefixes for name in names}
    old = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", name.removesuffix(".0"))  # diffusers' before 0.17
    return kohya | {prefix + name for prefix in ("", f"{network}.") for name in (*names, old)}


def _numbers(tensor: Any, what: str, role: str) -> Tensor:
    """A file's tensor as a float32 matrix; alpha as (1, 1). Raises ValueError: it is none, or not finite."""
    plain = (
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_complex())
    )
    if plain and role == "alpha" and tensor.numel() == 1:
        tensor = tensor.reshape(1, 1)
    if plain and tensor.ndim == 4 and tensor.shape[2:] != (1, 1):
        raise ValueError(f"{what} belongs to a LoRA of convolutions (LoCon); minti reads plain LoRAs only")
    if not plain or tensor.ndim not in (2, 4) or 0 in tensor.shape:
        kind = f"has shape {tuple(tensor.shape)}" if plain else "is no tensor of numbers"
        raise ValueError(
            f"{what} {kind}; expected {'one number' if role == 'alpha' else 'a matrix, of rank 1 or more'}"
        )
    numbers = tensor.detach().float().flatten(1).clone()
    if not numbers.isfinite().all():
        raise ValueError(f"{what} has numbers that are not finite; learn it again")
    return numbers


def _pair(given: Mapping[str, Tensor], alpha: float | None, what: str) -> Pair:
    """The tensors of a layer as its pair; without an alpha it is the rank. Raises ValueError: they do not fit."""
    if missing := {"down", "up"} - given.keys():
        raise ValueError(f"{what} has half a pair: its {min(missing)} is missing")
    down, up = given["down"], given["up"]
    if len(down) != up.shape[1]:
        raise ValueError(f"{what} has a down of rank {len(down)} and an up of rank {up.shape[1]}; expected the same")
    alpha = given["alpha"].item() if "alpha" in given else len(down) if alpha is None else alpha
    if not 0 < alpha < math.inf:
        raise ValueError(f"{what} has alpha = {alpha}; expected a number above 0")
    return Pair(down, up, alpha)


def _alphas(path: Path, layers: Iterable[str]) -> dict[str, float]:
    """The layers' alphas by peft's config in diffusers' metadata, if there is one. Raises ValueError: bad metadata."""
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
            ends = config.get(f"{network}.alpha_pattern", {}).items()  # peft allows expressions; diffusers writes names
            usual = config.get(f"{network}.lora_alpha")
            alpha = next((alpha for end, alpha in ends if f".{name}".endswith("." + end.removeprefix("^"))), usual)
            if alpha is not None:
                alphas[layer] = float(alpha)
        return alphas
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata, {CONFIG}, cannot be read ({one_line(error)})") from None
