"""Prompts to context: the CLIP tokenizer and text encoder of Hugging Face, and new words for them.

A concept of several vectors is several tokens, named as diffusers names them: `<cat>`, `<cat>_1`, `<cat>_2`. The
tokenizer itself remembers them, so nothing is kept here: wherever a prompt says `<cat>`, it is expanded. What belongs
to `<cat>` are the tokens behind it that take the space before them (`AddedToken.lstrip`); a word of its own that
happens to be called `<cat>_1` does not.
Lecture notes `002`, 7.3 and chapter 16.
"""

from __future__ import annotations

import copy
import re
import unicodedata
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AddedToken, CLIPTextModel, CLIPTokenizer

from minti.machine.messages import quoted, shortened, shown


def _templates(listed: str) -> tuple[str, ...]:
    return tuple(" ".join(template.split()) for template in listed.split(";"))


# The lists for objects and for styles of "An Image is Worth One Word" (arXiv 2208.01618) and its authors' code.
OBJECT_TEMPLATES = _templates("""
    a photo of a {}; a rendering of a {}; a cropped photo of the {}; the photo of a {}; a photo of a clean {}; a photo
    of a dirty {}; a dark photo of the {}; a photo of my {}; a photo of the cool {}; a close-up photo of a {}; a bright
    photo of the {}; a cropped photo of a {}; a photo of the {}; a good photo of the {}; a photo of one {}; a close-up
    photo of the {}; a rendition of the {}; a photo of the clean {}; a rendition of a {}; a photo of a nice {}; a good
    photo of a {}; a photo of the nice {}; a photo of the small {}; a photo of the weird {}; a photo of the large {}; a
    photo of a cool {}; a photo of a small {}
""")
STYLE_TEMPLATES = _templates("""
    a painting in the style of {}; a rendering in the style of {}; a cropped painting in the style of {}; the painting
    in the style of {}; a clean painting in the style of {}; a dirty painting in the style of {}; a dark painting in the
    style of {}; a picture in the style of {}; a cool painting in the style of {}; a close-up painting in the style of
    {}; a bright painting in the style of {}; a cropped painting in the style of {}; a good painting in the style of {};
    a close-up painting in the style of {}; a rendition in the style of {}; a nice painting in the style of {}; a small
    painting in the style of {}; a weird painting in the style of {}; a large painting in the style of {}
""")
TEMPLATES = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}


def check_templates(templates: str | Sequence[str]) -> None:
    """Refuses what are no training prompts.

    Args:
        templates: a name of `TEMPLATES`, or prompts.

    Raises:
        ValueError: an unknown name, no prompt, or one without `{}`; names it.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(f"unknown templates {quoted(templates)}; expected one of {', '.join(TEMPLATES)}")
        return
    if not templates:
        raise ValueError("templates is empty; give at least one, such as 'a photo of a {}'")
    for template in templates:
        check_text(template, "template")
        if "{}" not in template:
            raise ValueError(f"template {quoted(template)} has no {{}}; write {{}} where the new word goes")


# --- placeholder tokens -----------------------------------------------------------------------------------------------


def placeholder_tokens(placeholder: str, num_vectors: int) -> list[str]:
    """The tokens of a concept, as diffusers names them: ["<cat>", "<cat>_1", ...]."""
    return [placeholder] + [f"{placeholder}_{i}" for i in range(1, num_vectors)]


def check_new_placeholder(tokenizer: CLIPTokenizer, placeholder: str) -> None:
    """Refuses a placeholder that could not become a new word.

    Raises:
        ValueError: it is empty, contains white space or what cannot be printed, changes when the tokenizer tidies it,
            or is a word already (the tokenizer lower-cases, so `<Cat>` and `<cat>` are the same word).
    """
    tidied = unicodedata.normalize("NFC", placeholder)
    if not placeholder or not placeholder.isprintable() or re.search(r"\s", placeholder) or tidied != placeholder:
        raise ValueError(
            f"placeholder token {quoted(placeholder)}: expected one word without spaces, such as '<concept>'"
        )
    lower = placeholder.lower()
    for token in tokenizer.get_vocab():
        if token.lower() in (lower, lower + "</w>"):
            same = "" if token in (placeholder, placeholder + "</w>") else f" as {token.removesuffix('</w>')!r}"
            raise ValueError(
                f"placeholder token {quoted(placeholder)} is in the vocabulary already{same} (case does not count); "
                "choose a word that does not exist, such as '<my-concept>'"
            )


def single_token_id(tokenizer: CLIPTokenizer, word: str) -> int:
    """The id of a word that is one token.

    Raises:
        ValueError: it is not a single token, or unknown.
    """
    check_text(word, "initializer token")
    ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
    if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
        pieces = shortened(" + ".join(tokenizer.convert_ids_to_tokens(ids))) or "nothing"
        raise ValueError(
            f"initializer token {quoted(word)} is not a single token of this vocabulary (it becomes {pieces}); "
            "choose a plain word, or several, that say roughly what the pictures show"
        )
    return ids[0]


def name_tokens(tokenizer: CLIPTokenizer, tokens: list[str]) -> None:
    """Adds the tokens of one concept to the tokenizer alone; see `add_tokens`."""
    for token in tokens:
        check_new_placeholder(tokenizer, token)
    first, *others = tokens
    tokenizer.add_tokens([AddedToken(first), *(AddedToken(token, lstrip=True) for token in others)])


def tried_tokens(tokenizer: CLIPTokenizer, tokens: list[str]) -> CLIPTokenizer:
    """A copy of the tokenizer with the tokens of one concept: a word cannot be taken out of a tokenizer again.

    Raises:
        ValueError: the tokens cannot be new words, or the tokenizer does not find them in a prompt.
    """
    tried = copy.deepcopy(tokenizer)
    name_tokens(tried, tokens)
    ids = tried(expand_placeholders(tokens[0], tried), add_special_tokens=False, verbose=False).input_ids
    if ids != tried.convert_tokens_to_ids(tokens):
        raise ValueError(
            f"placeholder token {quoted(tokens[0])} would not be found in a prompt by this tokenizer; choose plain "
            "letters, such as '<my-concept>'"
        )
    return tried


@torch.no_grad()
def add_tokens(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, tokens: list[str], rows: Tensor) -> list[int]:
    """Adds tokens to the tokenizer and their rows to the end of the text encoder's embedding.

    Args:
        tokens: of one concept, from `placeholder_tokens`; new ones, see `check_new_placeholder`.
        rows: (len(tokens), d).

    Returns:
        Their ids, consecutive.
    """
    name_tokens(tokenizer, tokens)
    old = text_encoder.get_input_embeddings().weight
    # Hugging Face's resize would draw the new rows from the mean and covariance of all the old ones: slow, and
    # overwritten at once.
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = text_encoder.get_input_embeddings().weight
    ids = tokenizer.convert_tokens_to_ids(tokens)
    weight[ids] = rows.to(weight)
    weight.requires_grad_(old.requires_grad)
    return ids


def expand_placeholders(prompt: str, tokenizer: CLIPTokenizer) -> str:
    """`"a <cat>"` to `"a <cat> <cat>_1 <cat>_2"`, for every concept of several vectors; case does not count."""
    tokens = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if not token.special}
    concepts = []
    for id_, token in tokens.items():
        if not token.lstrip:
            concepts.append([token.content])
            while (behind := tokens.get(id_ + len(concepts[-1]))) is not None and behind.lstrip:
                concepts[-1].append(behind.content)
    concepts += [[token.content] for token in tokens.values() if token.lstrip]  # one named alone stays alone
    concepts.sort(key=lambda concept: len(concept[0]), reverse=True)  # "<cat>s" and "<cat>_1" before "<cat>"
    # An expansion that stands there already is found as a whole, and stays.
    patterns = (r"(?:\s*".join(map(re.escape, concept)) + ")?" * (len(concept) - 1) for concept in concepts)
    expansions = [" ".join(concept) for concept in concepts]
    pattern = "|".join(f"({pattern})" for pattern in patterns)
    return re.sub(pattern, lambda m: expansions[m.lastindex - 1], prompt, flags=re.IGNORECASE) if pattern else prompt


# --- prompts to context -----------------------------------------------------------------------------------------------


def check_text(text: str, what: str) -> None:
    """Refuses what is no text: half characters come from file names and command lines that are not UTF-8.

    Raises:
        ValueError: the text is not a str, or cannot be encoded; calls it `what`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{what} {shown(text)} is not text; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {quoted(text)} holds half a character (a lone surrogate) at {error.start}; expected UTF-8"
        ) from None


def tokenize(prompts: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """Prompts to token ids, padded to the context's length, (b, m) int64.

    Warns when a prompt is longer than the context, and says what was cut.

    Raises:
        ValueError: a prompt is not text that can be encoded.
    """
    for prompt in prompts:
        check_text(prompt, "the prompt")
    prompts = [expand_placeholders(prompt, tokenizer) for prompt in prompts]
    length = tokenizer.model_max_length
    for ids in tokenizer(prompts, verbose=False).input_ids:
        if len(ids) > length:
            cut = quoted(tokenizer.decode(ids[length - 1 : -1]).strip())
            warnings.warn(f"the prompt is longer than {length - 2} tokens; cut off: {cut}", stacklevel=2)
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def encode(input_ids: Tensor, text_encoder: CLIPTextModel) -> Tensor:
    """Token ids (b, m) to context (b, m, d), the last hidden states after the final layer norm."""
    return text_encoder(input_ids.to(text_encoder.device)).last_hidden_state
