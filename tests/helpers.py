"""What several tests share: the small model's configs, a tokenizer for it, and how tests sample and train."""

import inspect
import itertools
import json
import os
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTokenizer

import minti
from minti.configs import read_config

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 48,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "sample_size": 16,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
REAL_RELEASE = os.environ.get("MINTI_SD_V1_4")  # a folder, a single file or a hub id
THREADS = torch.get_num_threads()  # as many as torch takes by itself

PRINTABLE = [chr(c) for c in range(33, 127)]
WORDS = ("a", "photo", "of", "the", "toy", "red", "cat", "dog", "painting", "style", "in")
PROMPTS = ["a red cat", "the dog"]
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

# --- diffusers' samplers ----------------------------------------------------------------------------------------------

CLASSES = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}
PIPELINE = {"tcd": {"eta": 0.3}}  # what a pipeline is told: by itself it hands over eta = 0
SKIP = {sampler: {"skip_prk_steps": True} if sampler == "pndm" else {} for sampler in CLASSES}
THEIR_KEYS = {sampler: set(inspect.signature(kind.__init__).parameters) for sampler, kind in CLASSES.items()}

# --- the small model --------------------------------------------------------------------------------------------------


def write_tokenizer(
    folder: Path,
    length: int = 16,
    letters: Sequence[str] = PRINTABLE,
    words: Sequence[str] = WORDS,
    size: int | None = None,
) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the letters and a few whole words.

    Args:
        length: of a prompt, in tokens.
        words: spelt in `letters`.
        size: filled up to so many tokens with made-up syllables; None adds none.
    """
    vocab, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    known = set(vocab)
    spellings = (pair for word in words for pair in _spelling(word))
    for first, second in itertools.chain(spellings, _syllables() if size else ()):
        if size and len(vocab) == size - 2:
            break
        if first + second not in known:
            merges.append(f"{first} {second}")
            vocab.append(first + second)
            known.add(first + second)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _spelling(word: str) -> Iterator[tuple[str, str]]:
    """The merges that make one token of a word, from left to right."""
    *letters, last = word
    for i, letter in enumerate([*letters, last + "</w>"][1:], 1):
        yield word[:i], letter


def _syllables() -> Iterator[tuple[str, str]]:
    """Merges without end, short ones first: aa, ab, ..., each also as the end of a word."""
    beginnings = list(string.ascii_lowercase)
    for first in beginnings:  # grows while it is read
        for second in string.ascii_lowercase:
            yield first, second + "</w>"
            yield first, second
            beginnings.append(first + second)


def parse_config(kind: type, values: Mapping[str, Any], name: str = "config.json", **only: tuple[Any, ...]) -> Any:
    """The config of that kind which minti reads from a file of that name with these values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(json.dumps(dict(values)), encoding="utf-8")
        return read_config(kind, path, **only)


def random_controlnet(unet: diffusers.UNet2DConditionModel, widths: tuple[int, ...]) -> diffusers.ControlNetModel:
    """A ControlNet of diffusers beside a UNet, in which no parameter is zero: it adds something."""
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths).eval()
    for parameter in control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return control


def assert_same(model, expected):
    """The same weights, and a prompt becomes the same context."""
    for part in PARTS:
        ours, theirs = getattr(model, part).state_dict(), getattr(expected, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].to(ours[key])) for key in ours)
    assert torch.equal(model.encode_prompt("a cat").float(), expected.encode_prompt("a cat").to(model.dtype).float())


# --- sampling and training --------------------------------------------------------------------------------------------


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n=3, seed=0):
    """Random training images, (n, 3, 16, 16) in [-1, 1]."""
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def wrapper(model, **options) -> minti.TrainingWrapper:
    templates = ("a photo of a {}", "the {}")
    defaults = {"initializer_token": "toy", "templates": templates, "batch_size": 2, "learning_rate": 0.01}
    return minti.TrainingWrapper(model, minti.TextualInversionConfig(**(defaults | options)))


def learning(word: minti.TrainingWrapper, images=None, optimizer=None, checkpoint=None):
    """An iterator of the `TrainingState`s of a monitored run."""
    images = pictures() if images is None else images
    return iter(minti.monitored(minti.textual_inversion(word, images, optimizer, checkpoint)))


def train(model, images=None, **options):
    """Trains to the end with a validation loss; returns the wrapper and all states."""
    trained = wrapper(model, **options)
    return trained, list(learning(trained, images))


def ids_of(word: minti.TrainingWrapper) -> list[int]:
    """The token ids of the word that is learned."""
    return word.model.words[word.config.placeholder_token]


def trainable(model) -> list[torch.nn.Parameter]:
    """What of a model takes a gradient."""
    networks = (model.unet, model.vae, model.text_encoder)
    return [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]


def random_lora(model, seed: int = 1, **options) -> minti.LoRA:
    """A LoRA that has learned something: its B is random, too."""
    lora, g = minti.LoRA(model, generator=seeded(seed), **options), seeded(seed + 1)
    with torch.no_grad():
        for pair in lora.pairs.values():
            pair.up.normal_(std=0.1, generator=g)
    return lora


class NarrowScaler(torch.amp.GradScaler):
    """torch's, for a loss whose gradient goes through float16: where the scale is beyond its numbers, it overflows."""

    def __init__(self, scale: float, growth_interval: int):
        super().__init__("cpu", init_scale=scale, growth_interval=growth_interval)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return super().scale(loss.half().float())


def write(word: minti.TrainingWrapper, values: torch.Tensor) -> None:
    """Sets the embedding vectors of a word that learns to (k, d)."""
    word.embedding.load_state_dict({"values": values})
    word.embedding.after_step(word.model)


def own_tokenizer(folder: Path) -> CLIPTokenizer:
    """Not copied but read again: a copied one leaves the ends of words in what it decodes."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")
