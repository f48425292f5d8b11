"""What a new word begins as: a known word's row, random rows, or those of a phrase.

For a phrase ("yellow moon") they are found. The text encoder is causal, so behind the end of a prompt every place has
read all of it. There the prompt with the phrase ("a photo of a yellow moon") is compared with that with the word ("a
photo of a <concept>"), and the word's rows go where the difference is least: a fit to the text encoder alone, without a
picture and without the UNet.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from minti.machine.messages import quoted, shortened
from minti.machine.noise import randn
from minti.machine.processes import add_up, world_size
from minti.text import (
    check_text,
    encode,
    expand_placeholders,
    placeholder_tokens,
    single_token_id,
    tokenize,
    tried_tokens,
)

STEPS = 100


@torch.no_grad()
def initial_rows(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    begin: str | None,
    count: int = 1,
    seed: int = 0,
    templates: Sequence[str] = ("{}",),
    placeholder: str = "<concept>",
) -> Tensor:
    """What a new word begins as, (count, d); nothing in the model changes (lecture notes `002`, 16).

    Args:
        begin: a known word, whose row is copied; a phrase, float32; or None, normal numbers, in every dimension with
            the vocabulary's mean and spread, float32.
        seed: of the random rows.
        templates, placeholder: the prompts in which the word is to say what the phrase does, and its name.

    Raises:
        ValueError: a word is not a single token; the vocabulary does not know a phrase's words, or a prompt is too long
            with them.
    """
    weight = text_encoder.get_input_embeddings().weight
    if is_phrase(begin):
        prompts = [template.replace("{}", begin) for template in templates]
        known = torch.tensor(known_ids(tokenizer, begin))
        check_lengths(tokenizer, prompts)
        parts = [part if len(part) else known[-1:] for part in known.tensor_split(count)]
        rows = torch.stack([weight[part].float().mean(dim=0) for part in parts])
        words = [template.replace("{}", placeholder) for template in templates]
        return fit(tokenizer, text_encoder, rows, placeholder_tokens(placeholder, count), words, prompts)
    if begin is not None:
        return weight[known_ids(tokenizer, begin)].repeat(count, 1)
    vocabulary = weight[: tokenizer.vocab_size].float()
    generator = torch.Generator().manual_seed(seed)
    noise = randn((count, weight.shape[1]), generator, weight.device, torch.float32)
    return vocabulary.mean(dim=0) + vocabulary.std(dim=0) * noise


def fit(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    rows: Tensor,
    tokens: list[str],
    words: Sequence[str],
    phrases: Sequence[str],
) -> Tensor:
    """Rows with which the prompts `words` are encoded nearly as the prompts `phrases`; the same in every process.

    Args:
        rows: (k, d) float32, where the search begins.
        tokens: of the word, which the tokenizer does not know yet.
    """
    tried = tried_tokens(tokenizer, tokens)
    mine, theirs = tokenize(list(words), tried), tokenize(list(phrases), tokenizer)  # b m
    places = torch.isin(mine, torch.tensor(tried.convert_tokens_to_ids(tokens)))
    mine = mine.masked_fill(places, 0)  # these ids have no row yet
    # Where the longer of both prompts has ended; from there on both have the same tokens.
    ends = torch.maximum(*((ids == tokenizer.eos_token_id).int().argmax(dim=1) for ids in (mine, theirs)))
    wanted = encode(theirs, text_encoder).float()  # b m d
    weight = text_encoder.get_input_embeddings().weight
    optimizer = torch.optim.Adam([rows], lr=0.3 * weight.float().square().mean().sqrt().item())
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=STEPS)
    for step in range(STEPS):
        i = slice(step % len(mine), step % len(mine) + 1)
        with torch.enable_grad(), standing_in(text_encoder.get_input_embeddings(), places[i], rows.requires_grad_()):
            got = encode(mine[i], text_encoder).float()
            difference = (got - wanted[i])[:, ends[i].item() :].square().mean()
            (rows.grad,) = torch.autograd.grad(difference, [rows])
        optimizer.step()
        rates.step()
    return add_up(rows.detach()) / world_size()


def is_phrase(text: str | None) -> bool:
    """Whether it is several words."""
    return isinstance(text, str) and len(text.split()) > 1


def known_ids(tokenizer: CLIPTokenizer, begin: str) -> list[int]:
    """The token ids of a known word, which is a single token, or of a phrase, whose words may be several each.

    Raises:
        ValueError: the word is not a single token; a word of the phrase is none that the vocabulary knows, but falls
            into single characters.
    """
    if not is_phrase(begin):
        return [single_token_id(tokenizer, begin)]
    check_text(begin, "initializer")
    for word in expand_placeholders(begin, tokenizer).split():
        ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        pieces = [piece.removesuffix("</w>") for piece in tokenizer.convert_ids_to_tokens(ids)]
        if set(ids) & set(tokenizer.all_special_ids) or (len(word) > 1 and all(len(piece) == 1 for piece in pieces)):
            raise ValueError(
                f"initializer {quoted(begin)}: the vocabulary does not know {quoted(word)}; say it in other words"
            )
        if len(ids) > 1:
            made_of = shortened(" + ".join(pieces))
            warnings.warn(f"initializer {quoted(begin)}: {quoted(word)} is no single token but {made_of}", stacklevel=2)
    return tokenizer(expand_placeholders(begin, tokenizer), add_special_tokens=False, verbose=False).input_ids


def check_lengths(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> None:
    """Refuses prompts of which the end would be cut off.

    Raises:
        ValueError: names the first.
    """
    length = tokenizer.model_max_length
    for prompt in prompts:
        if len(tokenizer(expand_placeholders(prompt, tokenizer), verbose=False).input_ids) > length:
            raise ValueError(
                f"the prompt {quoted(prompt)} is too long for the {length} tokens of the context; begin with a shorter "
                "phrase"
            )


@contextmanager
def standing_in(embedding: nn.Embedding, places: Tensor, rows: Tensor) -> Iterator[None]:
    """As long as it lasts, what is embedded has the rows (k, d), in turn, in its places, (b, m) bool."""

    def put(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        each = rows.repeat(int(places.sum()) // len(rows), 1).to(output.dtype)
        return output.masked_scatter(places[..., None].to(output.device), each)

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
