"""Learned embeddings (textual inversion) in the files of other programs.

| program | what its file holds | the word |
|---|---|---|
| diffusers, `.safetensors`, `.bin` | {placeholder: vectors} | the placeholder |
| AUTOMATIC1111, `.pt` | {"string_to_param": {"*": vectors}, "name": word} | the file's name |
| AUTOMATIC1111, `.safetensors` | {"emb_params": vectors} | the file's name |
| AUTOMATIC1111, an image | the same, in a text or in the pixels: `embedded_images` | the name inside |
| the original repository | {"string_to_param": ParameterDict}, one or several words | the file's name, numbered |
| OneTrainer; diffusers' advanced script | {"emp_params": vectors}; {"clip_l": vectors} | the file's name |
| cloneofsimo's LoRA | numbered layers, and {placeholder: vectors} | the placeholder |
"""

import re
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minti.formats import embedded_images
from minti.formats.tensors import ParameterDict, content_type, read_content
from minti.runs.messages import short_repr, shortened

ALONE = ("emb_params", "emp_params", "clip_l")  # keys of the only vectors in a file, whose word is the file's name
BESIDE = {"clip_g": "SDXL", "t5": "FLUX or SD 3", "t5xxl": "FLUX or SD 3"}  # keys of other text encoders
LORA = re.compile(r"[._]lora.*\.weight$|\.alpha$|^(unet|text_encoder):\d+:")


def read(path: Path) -> dict[str, Tensor]:
    """The learned words of a file, {placeholder: (num_vectors, d)}; empty where it has none. Warns where a word is
    called otherwise than in the file. Raises OSError, ValueError: damaged, or something else; says what."""
    image = path.is_file() and content_type(path) == "image"
    content = embedded_images.read(path) if image else read_content(path, ": no such file of learned words")
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    if others := [key for key in content if key in BESIDE]:
        several = f"{BESIDE[others[0]]}, which has several text encoders"
        raise ValueError(f"{path}: {' and '.join(sorted(content)[::-1])} are of {several}; minti implements SD v1")
    if "string_to_param" in content:
        words = from_parameters(path, content, image)
    elif alone := [key for key in ALONE if key in content]:
        words = {path.stem: content[alone[0]]}
        if passed := [key for key, x in content.items() if isinstance(x, Tensor) and key != alone[0]]:
            warnings.warn(
                f"{path}: {shortened(', '.join(passed))}, not of SD v1's text encoder, is left out", stacklevel=2
            )
    elif any(LORA.search(key) for key in content):  # cloneofsimo's has words beside it
        words = {key: content[key] for key in content if not LORA.search(key)}
        if not words:
            raise ValueError(f"{path} is a LoRA, no file of learned words: load it as a LoRA (--lora)")
    else:
        words = dict(content)
    if not all(isinstance(tensor, Tensor) for tensor in words.values()):
        return {}
    said = {sayable(path, word): x[0] if x.ndim == 3 and len(x) == 1 else x for word, x in words.items()}
    if len(said) < len(words):
        raise ValueError(f"{path}: of its words {shortened(', '.join(words))} two would be called the same")
    return joined(said)


def from_parameters(path: Path, content: Mapping[str, Any], image: bool) -> dict[str, Any]:
    """The words of AUTOMATIC1111 and of the original repository. One is called as its file, as AUTOMATIC1111 does, and
    in an image as it says itself; of several, one that is a single character (`*`) gets a number."""
    parameters, name = content["string_to_param"], content.get("name")
    if isinstance(parameters, ParameterDict):
        parameters = vars(parameters).get("_parameters")
    if not isinstance(parameters, Mapping) or not all(isinstance(key, str) for key in parameters):
        return {}
    name, named = name if isinstance(name, str) else path.stem, list(parameters)
    if len(named) == 1:
        if not image and name != path.stem:
            called = f"the word is called as the file, {short_repr(path.stem)}; inside it is {short_repr(name)}"
            warnings.warn(f"{path}: {called}", stacklevel=2)
        return {name if image else path.stem: parameters[named[0]]}
    words = {key if len(key) > 1 else f"{path.stem}-{i}": parameters[key] for i, key in enumerate(named, 1)}
    if len(words) < len(named):
        raise ValueError(f"{path}: of its words {shortened(', '.join(named))} two would be called the same")
    if list(words) != named:
        listed = shortened(", ".join(f"{key} is called {word}" for key, word in zip(named, words)))
        warnings.warn(f"{path} holds {len(words)} words: {listed}", stacklevel=2)
    return words


def sayable(path: Path, word: str) -> str:
    """A word that a prompt can say: without white space, and composed as the tokenizer does. Warns of another name."""
    said = unicodedata.normalize("NFC", re.sub(r"\s+", "-", word.strip()))
    if re.search(r"\s", word):
        warnings.warn(f"{path}: the word {short_repr(word)} is called {said}, for prompts", stacklevel=2)
    return said


def joined(words: dict[str, Tensor]) -> dict[str, Tensor]:
    """`<cat>` and `<cat>_1` of a vector each are one word, as in diffusers' prompts."""
    found = dict(words)
    for word in words:
        parts = [word]
        while f"{word}_{len(parts)}" in found:
            parts.append(f"{word}_{len(parts)}")
        alone = word in found and all(found[part].numel() == found[word].shape[-1:].numel() for part in parts)
        if len(parts) > 1 and alone:
            found[word] = torch.stack([found.pop(part).flatten() for part in parts])
    return {word: found[word] for word in words if word in found}
