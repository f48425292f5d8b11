"""The toybox's training data: numbered scenes, their images and captions, and a tokenizer for the world's words."""

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

from minti.runs.files import replacing
from painting import draw
from world import Scene, caption, near_miss, random_scene, words

CONTEXT_LENGTH = 32


@cache
def scene_of(index: int) -> Scene:
    """The training scene with this number; pairs, which are harder to learn, are more frequent than elsewhere."""
    return random_scene(np.random.default_rng((1, index)), pair_rate=0.45)


def picture_of(index: int) -> np.ndarray:
    """The image of a training scene, (3, 64, 64) uint8."""
    picture = draw(scene_of(index), np.random.default_rng((2, index)))
    return (picture * 255).round().astype(np.uint8).transpose(2, 0, 1)


def draw_pictures(count: int) -> Tensor:
    """Renders the first `count` training images, (count, 3, 64, 64) uint8."""
    with ProcessPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(picture_of, range(count), chunksize=1000))))


@cache
def byte_pairs(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair encoding: the merges that turn every word into one token, the most frequent pair first.

    Pairs that contain the end of a word are merged last. So a token that ends a word is a letter or a whole word, and
    no fragment ("ze") can be mistaken for a word. (The trainer of the tokenizers library leaves such fragments, and its
    vocabulary has another order each time, since it breaks ties at random.)
    """
    spelled, merges = [[*word[:-1], word[-1] + "</w>"] for word in words], []
    while pairs := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        merges.append(min(pairs, key=lambda pair: (pair[1].endswith("</w>"), -pairs[pair], pair)))
        left, right = merges[-1]
        for pieces in (pieces for pieces in spelled if left in pieces):
            for i in range(len(pieces) - 1, 0, -1):
                if pieces[i - 1 : i + 1] == [left, right]:
                    pieces[i - 1 : i + 1] = [left + right]
        spelled = [pieces for pieces in spelled if len(pieces) > 1]
    return merges


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a CLIP tokenizer into `folder`, the same every time; each of the world's words is one token."""
    merges = byte_pairs(tuple(words()))
    # CLIP's order: bytes, bytes that end a word, merged tokens, the two special tokens.
    ordered = sorted(ByteLevel.alphabet())
    vocab = ordered + [letter + "</w>" for letter in ordered] + list(dict.fromkeys("".join(pair) for pair in merges))
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    numbered = json.dumps({token: i for i, token in enumerate(vocab)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(numbered, encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", encoding="utf-8"
    )
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
    """A new caption for each scene; empty with probability `drop` (classifier-free guidance, arXiv 2207.12598)."""
    rng = np.random.default_rng((3, step))
    return ["" if rng.random() < drop else caption(scene_of(i), rng) for i in indices.tolist()]


def batches(count: int, size: int, step: int) -> Tensor:
    """Shuffled mini-batches: the indices of batch number `step`, (size,), when every epoch has a new order."""
    per_epoch = count // size
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 + step // per_epoch))
    return order[(step % per_epoch) * size :][:size]


def draw_near_misses(indices: Tensor, step: int) -> tuple[list[str], list[str]]:
    """Captions and hard negatives: the same caption of a scene that is almost the same, or "" if they are equal."""
    true, false = [], []
    for i in indices.tolist():
        scene, seed = scene_of(i), (5, step, i)
        true.append(caption(scene, np.random.default_rng(seed)))
        other = caption(near_miss(scene, np.random.default_rng((6, step, i))), np.random.default_rng(seed))
        false.append(other if other != true[-1] else "")
    return true, false


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file at once, indented as in SD v1.4's release."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
