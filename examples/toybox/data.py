"""What the toybox learns from: numbered scenes, their pictures and captions, and a tokenizer for the world's words."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from painting import draw
from world import Scene, caption, near_miss, random_scene, words

CONTEXT_LENGTH = 32


@cache
def scene_of(index: int) -> Scene:
    """The training scene with this number; pairs, which are harder to draw, are more frequent than elsewhere."""
    return random_scene(np.random.default_rng((1, index)), pair_rate=0.45)


def picture_of(index: int) -> np.ndarray:
    """Its picture, (3, 64, 64) uint8."""
    picture = draw(scene_of(index), np.random.default_rng((2, index)))
    return (picture * 255).round().astype(np.uint8).transpose(2, 0, 1)


def draw_pictures(count: int) -> Tensor:
    """The first `count` training pictures, (count, 3, 64, 64) uint8."""
    with ProcessPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(picture_of, range(count), chunksize=1000))))


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a CLIP tokenizer for the world's words into `folder`: byte pairs merged until every word is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(words(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]

    # The order of CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens.
    ordered = sorted(letters)
    vocab = ordered + [letter + "</w>" for letter in ordered] + ["".join(pair) for pair in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": vocab[-2], "eos_token": vocab[-1], "pad_token": vocab[-1], "unk_token": vocab[-1]}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "do_lower_case": True},
    )
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], padding: str = "max_length") -> Tensor:
    """Captions to token ids, (b, 32) or, with padding "longest", (b, n)."""
    options = {"padding": padding, "truncation": True, "max_length": CONTEXT_LENGTH, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


def draw_captions(indices: Tensor, step: int, drop: float = 0.0) -> list[str]:
    """A fresh caption for each scene; with probability `drop` an empty one (Ho and Salimans, Algorithm 1)."""
    rng = np.random.default_rng((3, step))
    return ["" if rng.random() < drop else caption(scene_of(i), rng) for i in indices.tolist()]


def draw_near_misses(indices: Tensor, step: int) -> tuple[list[str], list[str]]:
    """For each scene a caption, and the same caption of a scene that is almost the same; where they agree, ""."""
    true, false = [], []
    for i in indices.tolist():
        scene, seed = scene_of(i), (5, step, i)
        true.append(caption(scene, np.random.default_rng(seed)))
        other = caption(near_miss(scene, np.random.default_rng((6, step, i))), np.random.default_rng(seed))
        false.append(other if other != true[-1] else "")
    return true, false


def write_json(path: Path, content: dict) -> None:
    """Writes a config file as the release formats it."""
    path.write_text(json.dumps(content, indent=2) + "\n")
