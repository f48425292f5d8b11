"""Part 12's known mistakes with tokens and their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from exercise.grader.part import Mistake

ADDED = "`002` 7.3; `000`, task 2, first item"
ROWS = "`000`, task 2, first and second item; `002` 16"


def adding(
    named: Callable[[str, int], list[str]] = lambda word, n: [word, *(f"{word}_{i}" for i in range(1, n))],
    returned: Callable[..., Any] = lambda tokenizer, tokens, added: tokenizer.convert_tokens_to_ids(tokens),
    known: bool = True,
) -> Callable[..., Any]:
    """`add_placeholders` with something else in one of its places."""

    def function(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> Any:
        tokens = named(placeholder, num_vectors)
        if known and any(token in tokenizer.get_vocab() for token in tokens):
            raise ValueError("known")
        added = tokenizer.add_tokens(tokens)
        return returned(tokenizer, tokens, added)

    return function


def too_early(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    tokens = [placeholder, *(f"{placeholder}_{i}" for i in range(1, num_vectors))]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    adding()(tokenizer, placeholder, num_vectors)
    return ids


def of_vocab_size(tokenizer: CLIPTokenizer, tokens: list[str], added: int) -> list[int]:
    return list(range(len(tokenizer), len(tokenizer) + len(tokens)))


def only_the_first(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    if placeholder in tokenizer.get_vocab():
        raise ValueError("known")
    return adding(known=False)(tokenizer, placeholder, num_vectors)


PLACEHOLDERS = (
    Mistake(
        "one token, whatever `num_vectors` says",
        adding(lambda word, n: [word]),
        "How many vectors can one token have?",
        ADDED,
    ),
    Mistake(
        "the same token several times",
        adding(lambda word, n: [word] * n),
        "How much longer is the tokenizer after `add_tokens`?",
        ADDED,
    ),
    Mistake(
        "the tokens numbered from 0",
        adding(lambda word, n: [f"{word}_{i}" for i in range(n)]),
        "Which token is a prompt with the plain placeholder to have?",
        "the docstring",
    ),
    Mistake(
        "the later tokens numbered from 2",
        adding(lambda word, n: [word, *(f"{word}_{i}" for i in range(2, n + 1))]),
        "What is the second token called?",
        "the docstring",
    ),
    Mistake(
        "the number of added tokens, where their ids belong",
        adding(returned=lambda tokenizer, tokens, added: added),
        "What does `add_tokens` return, and which method knows a token's id?",
        ADDED,
    ),
    Mistake(
        "the first id alone",
        adding(returned=lambda tokenizer, tokens, added: tokenizer.convert_tokens_to_ids(tokens)[:1]),
        "How many ids has a word of three vectors?",
        ADDED,
    ),
    Mistake(
        "the ids with those of the text's beginning and end",
        adding(returned=lambda tokenizer, tokens, added: tokenizer(" ".join(tokens)).input_ids),
        "How long is what you return, and what are its first and its last number?",
        ADDED,
    ),
    Mistake(
        "the id of the text's beginning for every token",
        adding(returned=lambda tokenizer, tokens, added: [tokenizer.encode(token)[0] for token in tokens]),
        "How many numbers does the tokenizer make of one token, and which is the token's?",
        ADDED,
    ),
    Mistake(
        "the ids asked for before the tokens are there",
        too_early,
        "What does the tokenizer say of a token that it does not know?",
        ADDED,
    ),
    Mistake(
        "ids behind the new tokens: the length after adding, where that before belongs",
        adding(returned=of_vocab_size),
        "What is the largest id in a vocabulary of n tokens?",
        ADDED,
    ),
    Mistake(
        "a known token taken for a new one",
        adding(known=False),
        "What would become of a word that prompts use already?",
        "`Raises`",
    ),
    Mistake(
        "only the first token looked up, where each may be known",
        only_the_first,
        'What if "<cat>" is new, but "<cat>_1" is not?',
        "`Raises`",
    ),
)


def extending(
    start: Callable[..., int] = lambda tokenizer, word: tokenizer.encode(word, add_special_tokens=False)[0],
    length: Callable[..., int] = lambda tokenizer, ids: len(tokenizer),
    copied: Callable[..., Any] = lambda weight, ids, start: weight.__setitem__(ids, weight[start].clone()),
    single: bool = True,
) -> Callable[..., None]:
    """`add_rows` with something else in one of its places."""

    def function(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, ids: list[int], initializer_token: str) -> None:
        if single and len(tokenizer.encode(initializer_token, add_special_tokens=False)) > 1:
            raise ValueError("several tokens")
        text_encoder.resize_token_embeddings(length(tokenizer, ids), mean_resizing=False)
        copied(text_encoder.get_input_embeddings().weight.data, ids, start(tokenizer, initializer_token))

    return function


def exchanged(weight: torch.Tensor, ids: list[int], start: int) -> None:
    weight[start] = weight[ids[0]].clone()


NEW_ROWS = (
    Mistake(
        "the row of the text's beginning copied, where the word's belongs",
        extending(lambda tokenizer, word: tokenizer(word).input_ids[0]),
        "How many numbers is `tokenizer(word).input_ids` for one word, and which is the word's?",
        ROWS,
    ),
    Mistake(
        "the row of the text's end copied, where the word's belongs",
        extending(lambda tokenizer, word: tokenizer(word).input_ids[-1]),
        "How many numbers is `tokenizer(word).input_ids` for one word, and which is the word's?",
        ROWS,
    ),
    Mistake(
        "another token's row: the same letters, but not as a word of their own",
        extending(lambda tokenizer, word: tokenizer.convert_tokens_to_ids(word)),
        "Look at `tokenizer.tokenize(word)`: is it spelt as you ask for it?",
        ROWS,
    ),
    Mistake(
        "the text encoder's new rows are no copies of a known token's",
        extending(copied=lambda weight, ids, start: None),
        "What does resizing leave in a new row? And is the tensor that you change the one that is read from?",
        ROWS,
    ),
    Mistake(
        "only one new row initialised",
        extending(copied=lambda weight, ids, start: weight.__setitem__(ids[0], weight[start].clone())),
        "How many rows has the word?",
        ROWS,
    ),
    Mistake(
        "only the last new row initialised",
        extending(copied=lambda weight, ids, start: weight.__setitem__(ids[-1], weight[start].clone())),
        "How many rows has the word?",
        ROWS,
    ),
    Mistake(
        "the new row copied into the initializer's",
        extending(copied=exchanged),
        "Which of the two rows means something already?",
        ROWS,
    ),
    Mistake(
        "the new rows are zero",
        extending(copied=lambda weight, ids, start: weight.__setitem__(ids, 0.0)),
        "What is `initializer_token` for?",
        ROWS,
    ),
    Mistake(
        "the matrix resized to the new tokens alone",
        extending(length=lambda tokenizer, ids: len(ids), copied=lambda weight, ids, start: None),
        "How many rows does the text encoder need for all tokens together?",
        ROWS,
    ),
    Mistake(
        "a row too many",
        extending(length=lambda tokenizer, ids: len(tokenizer) + 1),
        "The tokenizer has the new tokens already; how long is it?",
        ROWS,
    ),
    Mistake(
        "an initializer of several tokens taken by its first",
        extending(single=False),
        "What does the first token of a word that the tokenizer splits mean?",
        "`Raises`",
    ),
)
