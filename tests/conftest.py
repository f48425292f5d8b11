"""A small Stable Diffusion with random weights, written by diffusers and transformers, opened by minti and by them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Nothing is fetched from the hub, but for the model that `pytest -m release` is asked to open.
if Path(os.environ.get("MINTI_SD_V1_4", ".")).exists():
    os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import pytest
import torch
from helpers import SCHEDULER, UNET, VAE, write_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import minti

# The tests' tensors are small: a second thread mostly waits for the first, and on a busy machine for long.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in the layout of SD v1.4, small and random."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer_source")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=diffusers.DDPMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def tiny(tiny_folder: Path) -> minti.StableDiffusion:
    """The small model, opened by minti; a fresh one for every test."""
    return minti.StableDiffusion.from_pretrained(tiny_folder)


@pytest.fixture
def pipeline(tiny_folder: Path) -> diffusers.StableDiffusionPipeline:
    """The same files, opened by diffusers."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A small random CLIP that can measure, written by transformers."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = small | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small model's folder that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")
