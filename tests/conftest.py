"""A small Stable Diffusion with random weights, written by diffusers and transformers, opened by minti and by them."""

from __future__ import annotations

import copy
import gc
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

# Nothing is fetched from the hub, but for the model that `pytest -m release` is asked to open.
if Path(os.environ.get("MINTI_SD_V1_4", ".")).exists():
    os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import pytest
import torch
from helpers import REAL_RELEASE, SCHEDULER, UNET, VAE, own_tokenizer, write_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import minti

# The tests' tensors are small: a second thread mostly waits for the first, and on a busy machine for long.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts

# Where all equalities were seen to hold.
HELD_AT = {"torch": "2.13.0", "transformers": "5.24.0", "diffusers": "0.42.1", "peft": "0.21.2"}
LONGEST = ("test_walkthrough", "test_distributed", "test_two_runs", "scripts/test_toybox.py")
HERE = {name: version(name).split("+")[0] for name in HELD_AT}


def versions_in_play() -> str:
    """One line: what is installed, and where that differs from the versions at which the equalities are held."""
    others = [f"{name} {number}" for name, number in HELD_AT.items() if HERE[name] != number]
    installed = ", ".join(f"{name} {number}" for name, number in HERE.items())
    return f"{installed}; the equalities are held at {', '.join(others) or 'these'}"


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "release" and not REAL_RELEASE:
        raise pytest.UsageError("-m release needs SD v1.4: set MINTI_SD_V1_4 to its folder, file or id on the hub")


def pytest_report_header() -> str:
    return versions_in_play()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A failure is told with the versions: an equality may have been lost to another one."""
    if terminalreporter.stats.get("failed") and HERE != HELD_AT:
        terminalreporter.write_line(versions_in_play())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Of several processes (`-n 2`) one takes a whole file, or all of `full_size/`, whose model is there once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "full_size" if "full_size" in file else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is made up, and the scripts, are slow as a whole, but for what is marked `fast`; what is slow may take more
    than pyproject.toml's `timeout`. Several processes begin with what takes minutes, so that none of them is left alone
    with it in the end."""
    for item in items:
        if item.path.parent.name in ("fuzz", "scripts") and not item.get_closest_marker("fast"):
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name == "full_size":
            item.add_marker(pytest.mark.timeout(3600))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(900))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


def pytest_collection_finish() -> None:
    """The libraries' million objects are there to stay: looking through them for garbage took a fifth of the time."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def opened(tiny_folder: Path) -> minti.StableDiffusion:
    """The small model, opened by minti; for every test that asks for `tiny` it is copied."""
    return minti.StableDiffusion.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def opened_by_diffusers(tiny_folder: Path) -> diffusers.StableDiffusionPipeline:
    """The same files, opened by diffusers; copied for every test that asks for `pipeline`."""
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
def tiny(opened: minti.StableDiffusion, tiny_folder: Path) -> minti.StableDiffusion:
    """The small model; a test may change it."""
    return replace(copy.deepcopy(opened), tokenizer=own_tokenizer(tiny_folder))


@pytest.fixture
def pipeline(
    opened_by_diffusers: diffusers.StableDiffusionPipeline, tiny_folder: Path
) -> diffusers.StableDiffusionPipeline:
    """The same model in diffusers; a test may change it."""
    pipe = copy.deepcopy(opened_by_diffusers)
    pipe.tokenizer = own_tokenizer(tiny_folder)
    return pipe


@pytest.fixture(scope="session")
def toybox() -> minti.StableDiffusion:
    """The bundled model; no test may change it."""
    return minti.StableDiffusion.from_pretrained()


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small model's folder that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")
