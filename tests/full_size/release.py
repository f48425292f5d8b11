"""SD v1.4 as both libraries open it, and its files with random weights: configs, tokenizer, names and byte layout."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import torch
from helpers import PRINTABLE, WORDS, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

import minti
from minti.configs import TextConfig
from minti.formats import hub
from minti.formats.single_file import SCHEDULER_CONFIG
from minti.formats.tensors import ModelCheckpoint
from minti.unet import UNetConfig
from minti.vae import VAEConfig

NETWORK = "diffusion_pytorch_model.safetensors"
# Bytes of the real files.
SIZES = {
    f"unet/{NETWORK}": 3_438_167_534,
    f"vae/{NETWORK}": 334_643_276,
    "text_encoder/model.safetensors": 492_265_879,
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

# CLIP spells in bytes: those that can be printed as themselves, the others as the characters from 256 on.
BYTES = {byte: chr(byte) for byte in (*map(ord, PRINTABLE), *range(161, 173), *range(174, 256))}
BYTES |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(BYTES)))}
LONGER_WORDS = (*WORDS, "wearing", "hats", "very", "long", "prompt", "an", "oil", "naïve", "café")


@dataclass(frozen=True)
class Release:
    """SD v1.4 in one of the forms that both libraries open.

    Attributes:
        source: a folder, an original single file or a hub id.
        configs: a folder with the configs and the tokenizer, which a single file lacks.
        steps: how many denoising steps the compared image takes.
    """

    source: str
    configs: Path
    steps: int

    @property
    def is_file(self) -> bool:
        return Path(self.source).is_file()

    @property
    def folder(self) -> Path:
        """Where the weights lie, of a folder or a hub id."""
        return hub.folder_of(self.source)

    def ours(self, dtype: torch.dtype = torch.float32) -> minti.StableDiffusion:
        """The model, opened by minti."""
        return minti.StableDiffusion.from_pretrained(self.source, dtype=dtype)

    def theirs(self, dtype: torch.dtype = torch.float32) -> diffusers.StableDiffusionPipeline:
        """The same files, opened by diffusers; of a single file it takes the configs from `configs`."""
        options = {"safety_checker": None, "feature_extractor": None, "torch_dtype": dtype}
        if self.is_file:
            load = diffusers.StableDiffusionPipeline.from_single_file
            options |= {"config": str(self.configs), "local_files_only": True}
        else:
            load = diffusers.StableDiffusionPipeline.from_pretrained
        with torch.serialization.safe_globals([ModelCheckpoint]):  # which sd-v1-4.ckpt mentions
            pipe = load(self.source, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def write_configs(folder: Path) -> None:
    """Everything but the weights, from what minti says of SD v1; the tokenizer has made-up syllables."""
    levels = len(VAEConfig().block_out_channels)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    scheduler = {key: value for key, value in asdict(SCHEDULER_CONFIG).items() if value is not None}
    parts = {
        "scheduler": ("diffusers", "PNDMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    configs = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"} | parts,
        "unet/config.json": asdict(UNetConfig()),
        "vae/config.json": asdict(VAEConfig()) | blocks | {"sample_size": 512},
        "text_encoder/config.json": asdict(TextConfig()) | {"model_type": "clip_text_model"},
        "scheduler/scheduler_config.json": scheduler | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    words = ["".join(BYTES[byte] for byte in word.encode()) for word in LONGER_WORDS]
    write_tokenizer(folder / "tokenizer", 77, [*BYTES.values()], words, size=TextConfig().vocab_size)


def write_weights(folder: Path) -> None:
    """Random weights, under the names that the release has."""
    torch.manual_seed(0)
    for name in SIZES:
        tensors = weights(name, folder)
        with (folder / name).open("wb") as file:
            file.write(header(tensors))
            for tensor in tensors.values():
                file.write(tensor.contiguous().numpy().tobytes())


def weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What is in one of the release's files, sorted by name; random, or on torch's meta device shapes alone."""
    part = name.split("/")[0]
    if part == "text_encoder":
        config = CLIPTextConfig(**json.loads((folder / "text_encoder/config.json").read_text(encoding="utf-8")))
        state = CLIPTextModel(config).state_dict()
        tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
        state = kind.from_config(kind.load_config(folder / part)).state_dict()
        tensors = {old_name(key) if part == "vae" else key: value for key, value in state.items()}
    return dict(sorted(tensors.items()))


def old_name(key: str) -> str:
    """The VAE's attention as it was called in 2022."""
    pattern = r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)(?=\.)"
    return re.sub(pattern, lambda match: OLD_ATTENTION[match[0]], key)


def header(tensors: dict[str, torch.Tensor]) -> bytes:
    """safetensors' as in 2022: no padding behind it."""
    entries, offset = {"__metadata__": {"format": "pt"}}, 0
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for key, tensor in tensors.items():
        offsets = [offset, offset + tensor.nbytes]
        entries[key] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text
