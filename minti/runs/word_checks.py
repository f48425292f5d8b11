"""Checks of prompts, placeholders and learned words: each raises an error in one clear line that says what to do.

The core calls them by name (`utils.check`) and runs without them.
"""

import copy
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from minti.runs.messages import check_choice, short_repr, shortened
from minti.templates import TEMPLATES
from minti.text import add_tokens, placeholder_tokens, token_ids

WIDTHS = {768: ", SD 1 by its width", 1024: ", SD 2 by its width", 1280: ", SDXL by its width"}


def check_templates(templates: str | Sequence[str], what: str = "template") -> None:
    """Raises ValueError: an unknown name of `TEMPLATES`; no template, or one without `{}`; names it."""
    if isinstance(templates, str) and what == "template":
        return check_choice("templates", templates, list(TEMPLATES))
    if isinstance(templates, str) or not hasattr(templates, "__len__"):
        raise ValueError(
            f"{what}s = {short_repr(templates)}; expected a list of prompts, such as ['a photo of a {{}}']"
        )
    if not templates:
        raise ValueError(f"{what}s is empty; give at least one, such as 'a photo of a {{}}'")
    for template in templates:
        check_text(template, what)
        if "{}" not in template:
            raise ValueError(f"{what} {short_repr(template)} has no {{}}; write {{}} where the new word goes")


def check_text(text: str, what: str) -> None:
    """Raises ValueError: the text is no str, or cannot be encoded (half characters come from file names and command
    lines that are not UTF-8); calls it `what`."""
    if not isinstance(text, str):
        raise ValueError(f"{what} {short_repr(text)} is not text; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character (a lone surrogate) at {error.start}"
        raise ValueError(f"{what} {short_repr(text)} holds {half}; expected UTF-8") from None


def check_new_placeholders(tokenizer: CLIPTokenizer, placeholders: Sequence[str]) -> None:
    """Raises ValueError: a placeholder is empty, contains white space or what cannot be printed, changes when the
    tokenizer tidies it, or is a word already (it lower-cases, so `<Cat>` and `<cat>` are the same word)."""
    tokens = sorted(tokenizer.get_vocab(), key=lambda token: token == token.lower())  # the exact ones last
    vocabulary = {token.lower().removesuffix("</w>"): token for token in tokens}
    for placeholder in placeholders:
        tidied = unicodedata.normalize("NFC", placeholder)
        if not placeholder or not placeholder.isprintable() or re.search(r"\s", placeholder) or tidied != placeholder:
            wanted = "expected one word without spaces, as '<concept>'"
            raise ValueError(f"placeholder token {short_repr(placeholder)}: {wanted}")
        token = vocabulary.get(placeholder.lower().removesuffix("</w>"))
        if token is not None:
            same = "" if token in (placeholder, placeholder + "</w>") else f" as {token.removesuffix('</w>')!r}"
            known = f"{short_repr(placeholder)} is in the vocabulary already{same} (case does not count)"
            choose = "choose a word that does not exist, such as '<my-concept>'"
            raise ValueError(f"placeholder token {known}; {choose}")


def tokenizer_with(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> tuple[CLIPTokenizer, list[int]]:
    """A copy of the tokenizer with a new word, and the ids of its tokens.
    Raises ValueError: it cannot be a new word, or the tokenizer would not find it in a prompt."""
    tried = copy.deepcopy(tokenizer)
    ids = add_tokens(tried, placeholder, num_vectors)
    if token_ids(placeholder, tried, {placeholder: ids}) != ids:
        lost = "would not be found in a prompt by this tokenizer; choose plain letters, such as '<my-concept>'"
        raise ValueError(f"placeholder token {short_repr(placeholder)} {lost}")
    return tried, ids


def check_new_word(wrapper: Any) -> None:
    """Raises ValueError: the placeholder cannot be a new word or is not found in a prompt, a template is too long for
    all of its vectors, or E4's recipe would have to train a matrix in half precision."""
    config, dtype = wrapper.config, wrapper.model.text_encoder.get_input_embeddings().weight.dtype
    if config.row_update == "restore" and dtype != torch.float32:
        mend = "load the model in float32, or use row_update='new_rows', whose vectors are float32 in any model"
        raise ValueError(f"row_update='restore' trains the embedding matrix itself, which is {dtype}; {mend}")
    placeholder, length = config.placeholder_token, wrapper.model.tokenizer.model_max_length
    tokenizer, ids = tokenizer_with(wrapper.model.tokenizer, placeholder, config.num_vectors)
    warn_of_broken_words(wrapper, tokenizer)
    for prompt in wrapper.prompts:
        found = token_ids(prompt, tokenizer, wrapper.model.words | {placeholder: ids})
        if not set(ids) <= set(found):
            mend = "; write {} in every caption where the word goes" if config.captions else ""
            raise ValueError(f"the tokenizer does not find {placeholder} in the prompt {short_repr(prompt)}{mend}")
        if not set(ids) <= set(found[: length - 2]):  # without the beginning and the end
            lacks = f"does not contain all {len(ids)} vectors of {placeholder} once tokenized"
            why = f"it is too long for the {length} tokens of the context; use a shorter template or fewer vectors"
            raise ValueError(f"the prompt {short_repr(prompt)} {lacks}: {why}")


def written_words(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: the file is not a `.safetensors`, or a number is not finite."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: learned words are written as safetensors only; end the name in .safetensors")
    for token, vectors in words.items():
        if not vectors.isfinite().all():
            raise ValueError(f"{path} is not written: {token} is not finite; try a lower learning rate")


def read_words(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: a file has no words."""
    if not words:
        raise ValueError(f"{path} holds no learned words; expected a file of diffusers or of AUTOMATIC1111")
    for token, tensor in words.items():
        check_vectors(tensor, f"{path}: {shortened(token)}")


def one_word(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: a file has several words."""
    if len(words) > 1:
        listed = f"{len(words)} words ({shortened(', '.join(words))})"
        raise ValueError(f"{path} holds {listed}; one name cannot serve all")


def check_vectors(tensor: Tensor, what: str) -> None:
    """Raises ValueError: a tensor is no embedding vectors of a word, (n, d) or (d,); calls it `what`."""
    kind = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    plain = tensor.layout == torch.strided and tensor.is_floating_point() and not tensor.is_meta
    plain = plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()  # not one many times
    if tensor.ndim == 4:
        table = "a table of vectors by layer or timestep, which sample.py takes by --vector-table"
        raise ValueError(f"{what} is {kind}, {table}; learned_embeds.safetensors beside it has their mean")
    if tensor.ndim not in (1, 2) or 0 in tensor.shape or not plain:
        raise ValueError(f"{what} is {kind}; expected its embedding vectors, (n, d), of floating point numbers")
    if not tensor.float().isfinite().all():
        raise ValueError(f"{what}, {kind}, has numbers that are not finite; learn it again")


def check_vectors_fit(model: Any, what: str, vectors: Tensor) -> None:
    """Raises ValueError: vectors (n, d), called `what`, are none of this model's width, too many, or too large."""
    weight = model.text_encoder.get_input_embeddings().weight
    if vectors.shape[1] != weight.shape[1]:
        other = WIDTHS.get(vectors.shape[1], "")
        own = f"the words of this model are {weight.shape[1]} numbers wide; it was learned on another model{other}"
        raise ValueError(f"{what} has shape {tuple(vectors.shape)}, but {own}")
    if len(vectors) > model.tokenizer.model_max_length - 2:
        raise ValueError(f"{what} has {len(vectors)} vectors, more than a prompt can hold")
    if not vectors.to(weight).isfinite().all():
        raise ValueError(f"{what} has numbers too large for this model's {weight.dtype}")


def loaded_words(model: Any, path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: the words of a file do not fit a model; names the file and the word."""
    for token, vectors in words.items():
        check_vectors_fit(model, f"{path}: {shortened(token)}", vectors)
        try:
            tokenizer_with(model.tokenizer, token, len(vectors))
        except ValueError as error:
            raise ValueError(f"{path}: {error}, under which to load it") from None
    tokens = [part.lower() for token, x in words.items() for part in placeholder_tokens(token, len(x))]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{path} holds words that are the same but for their case: {shortened(', '.join(words))}")


def single_token(tokenizer: CLIPTokenizer, word: str, ids: list[int]) -> None:
    """Raises ValueError: an initializer token is not a single token, or unknown."""
    if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
        pieces = shortened(" + ".join(tokenizer.convert_ids_to_tokens(ids))) or "nothing"
        found = f"initializer token {short_repr(word)} is not a single token of this vocabulary (it becomes {pieces})"
        raise ValueError(f"{found}; choose a plain word, or several, that say roughly what the images show")


# Emphasis, alternation, LoRAs and breaks as AUTOMATIC1111 writes them; compel's emphasis.
SYNTAX = re.compile(
    r"\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*:\s*[-+]?[.\d]+\s*\)|\(\([^()]*\)\)|\[[^\[\]]*\]|<\w+:[^<>]*>|\bBREAK\b"
    r"|(?P<compel>(?:\([^()]*\)(?:\++|-+|\d*\.?\d+)|\w(?:\+{2,}|-{2,}))(?![\w+-]))"
)


def prompts(prompts: Any, tokenizer: CLIPTokenizer) -> None:
    """Raises ValueError: there are none. Warns of what a prompt does not mean as it is written: the syntax of another
    program, a placeholder in brackets that this model has not learned."""
    if not hasattr(prompts, "__len__"):
        raise ValueError(f"prompts = {short_repr(prompts)}; expected a text, or a list of texts")
    if not len(prompts):
        raise ValueError("no prompt given")
    for prompt in (prompt for prompt in prompts if isinstance(prompt, str)):
        if syntax := SYNTAX.search(prompt):
            name = "compel" if syntax["compel"] else "a1111"
            reads = f"encode_prompt(weights={name!r}), in sample.py --prompt-weights {name}, reads it"
            if syntax[0].startswith("<"):
                reads = "sample.py takes LoRAs so, from --lora-dir"
            warnings.warn(f"the prompt holds {short_repr(syntax[0])}, read as letters here; {reads}", stacklevel=4)
        unknown_words(prompt, tokenizer)


def unknown_words(prompt: str, tokenizer: CLIPTokenizer) -> None:
    """Warns of a placeholder in angle brackets that the model has not learned."""
    if "<" in prompt:
        added, text = "|".join(map(re.escape, tokenizer.get_added_vocab())), unicodedata.normalize("NFC", prompt)
        known = [range(*match.span()) for match in re.finditer(added, text, re.IGNORECASE)]
        for match in re.finditer(r"<(?=[^<>]*[^\W\d_])[^\s<>:/]+>", text):
            if not any(match.start() in span or span.start in range(*match.span()) for span in known):
                load = "load its file with load_embeddings (--embedding)"
                warnings.warn(f"the prompt says {short_repr(match[0])}, no word of this model; {load}", stacklevel=5)


def warn_of_broken_words(wrapper: Any, tokenizer: CLIPTokenizer) -> None:
    """Warns of other words in the training prompts that `tokenizer`, which has the placeholder, cuts to pieces because
    it stands in them: with "oto", "photo" is p h oto."""
    placeholder, broken = wrapper.config.placeholder_token, []
    said = {word for prompt in wrapper.config.captions or wrapper.templates for word in prompt.split()}
    for word in sorted(said):
        whole, pieces = (one.tokenize(word) for one in (wrapper.model.tokenizer, tokenizer))
        if whole != pieces and not re.search(rf"(?<!\w){re.escape(placeholder)}(?!\w)", word, re.IGNORECASE):
            broken.append(f"{word} (becomes {' '.join(pieces).replace('</w>', '')})")
    if broken:
        what = f"the placeholder {placeholder} stands in other words of the training prompts: {', '.join(broken)}"
        warnings.warn(f"{shortened(what, 300)}; choose one that does not, such as '<{placeholder}>'", stacklevel=2)
