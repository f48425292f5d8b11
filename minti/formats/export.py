"""Saves a model as a folder in the layout of SD v1.4, which minti and diffusers open."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from minti.loading import DEFAULTS, NETWORK
from minti.model import StableDiffusion
from minti.runs.messages import one_line

DIFFUSERS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "PNDMScheduler"}
CLASSES = {part: ["diffusers", name] for part, name in DIFFUSERS.items()}
CLASSES |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
CLASSES |= {"feature_extractor": [None, None], "safety_checker": [None, None]}


def save_folder(model: StableDiffusion, folder: Path) -> None:
    """Writes a model, all at once, without the words that were added to its vocabulary.
    Raises OSError: it cannot be written, or something stands there already, which is left as it is."""
    if folder.is_dir() and any(folder.iterdir()):
        raise OSError(f"{folder} is not empty; remove it, or give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:50]}."))
    try:
        for name, content in configs(model).items():
            (path := begun / name).parent.mkdir(exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
        rows, text = len(model.original_tokenizer or model.tokenizer), model.text_encoder.state_dict()
        text = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in text.items()}
        text = {key: tensor[:rows] if "token_embedding" in key else tensor for key, tensor in text.items()}
        networks = {f"unet/{NETWORK}": model.unet.state_dict(), f"vae/{NETWORK}": model.vae.state_dict()}
        for name, tensors in (networks | {"text_encoder/model": text}).items():
            # clone: safetensors writes no views, and a mapped file's tensors share its storage
            tensors = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
            save_file(tensors, path := begun / f"{name}.safetensors", {"format": "pt"})
            path.chmod((begun / DEFAULTS).stat().st_mode)  # as any new file; safetensors' own nobody else may read
        begun.chmod(path.parent.stat().st_mode)
        os.replace(begun, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {folder}: {one_line(error)}") from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def configs(model: StableDiffusion) -> dict[str, Any]:
    """The other files: a text, or what becomes JSON."""
    vae, text, tokenizer = model.vae.config, model.text_encoder.config.to_dict(), model.tokenizer
    levels, bpe = len(vae.block_out_channels), json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    schedule = {key: value for key, value in asdict(model.scheduler.config).items() if value is not None}
    pndm = {"_class_name": DIFFUSERS["scheduler"], "skip_prk_steps": True, "clip_sample": False}
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"])
    own = model.original_tokenizer or tokenizer
    added = {token: i for token, i in own.get_added_vocab().items() if i >= own.vocab_size}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    sizes = {"model_max_length": tokenizer.model_max_length, "do_lower_case": True}
    return {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"} | CLASSES,
        "unet/config.json": {"_class_name": DIFFUSERS["unet"]} | asdict(model.unet.config),
        "vae/config.json": {"_class_name": DIFFUSERS["vae"]} | asdict(vae) | blocks,
        "text_encoder/config.json": text | {"vocab_size": len(own)},
        "scheduler/scheduler_config.json": pndm | schedule,
        "tokenizer/vocab.json": bpe["vocab"],
        "tokenizer/merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"} | special | sizes,
        "tokenizer/special_tokens_map.json": special,
        "tokenizer/added_tokens.json": added,
        DEFAULTS: asdict(model.defaults),
    }
