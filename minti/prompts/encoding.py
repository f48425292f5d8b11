"""`StableDiffusion.encode_prompt` with options: prompt weights, long prompts, clip_skip.

weights: None reads brackets as letters. "a1111": the context times the weight, then scaled so that its mean is what it
was (AUTOMATIC1111's "Original"); "a1111-no-norm" leaves that out (its "No norm"). "compel": from the empty prompt's
context to the prompt's and beyond, and for weights below 1 towards the prompt without these words.
long_prompts: False cuts a prompt, or what is between two BREAKs, after 75 tokens, with a warning; True takes as many
chunks as there need to be. clip_skip: the context is the output of so many layers before the last, as in diffusers; the
number in A1111 is one more ("Clip skip 2" is clip_skip=1).
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minti.prompts.long_prompts import split
from minti.prompts.syntax import Part, parse
from minti.prompts.weights import RULES, Chunk
from minti.runs.messages import short_repr
from minti.runs.word_checks import check_text, unknown_words
from minti.runs.word_checks import prompts as check_prompts
from minti.text import token_ids

SIGNS, PRIVATE = re.compile(r'[][()\\:+\-.,"=]'), 0xF0000  # of any syntax; Unicode's plane of private use


def encode(
    model: Any,
    prompts: str | Sequence[str],
    weights: str | None = None,
    long_prompts: bool = False,
    clip_skip: int = 0,
) -> Tensor:
    """Prompts to contexts, (b, n m, d) for n chunks of m tokens, 77 in SD v1.4; a prompt of fewer gets empty chunks.
    Raises ValueError: an option, a weight or an empty chunk, see `prompts.syntax`."""
    prompts, layers = [prompts] if isinstance(prompts, str) else prompts, model.text_encoder.config.num_hidden_layers
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or not 0 <= clip_skip <= layers:
        wanted = f"expected 0 to {layers}, the text encoder's layers (A1111's number is one more)"
        raise ValueError(f"clip_skip = {short_repr(clip_skip)}; {wanted}")
    if weights is None or not hasattr(prompts, "__len__") or not len(prompts):
        check_prompts(prompts, model.tokenizer)
    rows = list(map(partial(chunks_of, model, weights=weights, long_prompts=long_prompts), prompts))
    longest = max(map(len, rows))
    rows = [row + [Chunk()] * (longest - len(row)) for row in rows]
    rule, hidden = RULES.get(weights), partial(hidden_state, model, clip_skip=clip_skip)
    return torch.cat([in_context(model, column, rule, hidden) for column in zip(*rows)], dim=1)


def chunks_of(model: Any, prompt: str, weights: str | None, long_prompts: bool) -> list[Chunk]:
    """A prompt's chunks. Raises ValueError: one is empty."""
    sections = [[(prompt, 1.0)]]
    if weights is not None:
        sections = parsed(prompt, weights, model.words)
        unknown_words(prompt, model.tokenizer)
    found: list[list[tuple[int, int]]] = []
    of_parts: list[float] = []
    for section in sections:
        tokens: list[tuple[int, int]] = []  # ids, and of which part they are
        for text, weight in section:
            tokens += [(token, len(of_parts)) for token in token_ids(text, model.tokenizer, model.words)]
            of_parts.append(weight)
        if not tokens and found and section is sections[-1]:
            break  # behind the last BREAK
        if not tokens and weights is not None and prompt.strip():
            mend = "leave out a BREAK, or write \\( and \\) for brackets that are text"
            raise ValueError(f"the prompt {short_repr(prompt)} has an empty chunk; {mend}")
        found += fitted(model, tokens, long_prompts)
    said = {part for tokens in found for _, part in tokens}  # the others are cut off
    of_parts = [weight if part in said else 1.0 for part, weight in enumerate(of_parts)]
    return [Chunk([token for token, _ in one], [part for _, part in one], of_parts) for one in found]


def fitted(model: Any, tokens: list[tuple[int, int]], long_prompts: bool) -> list[list[tuple[int, int]]]:
    """A section's tokens in chunks that hold them; without `long_prompts` the first chunk, with a warning."""
    tokenizer, room = model.tokenizer, model.tokenizer.model_max_length - 2
    ids = [token for token, _ in tokens]
    if len(ids) <= room:
        return [tokens]
    if not long_prompts:
        cut = tokenizer.decode(ids[room : room + 50]).replace("</w>", " ").strip()
        kept = "long_prompts=True (--long-prompts) keeps it"
        warnings.warn(f"the prompt is longer than {room} tokens; cut off: {cut!r} ({kept})", stacklevel=5)
        return [tokens[:room]]
    starts = split(ids, room, tokenizer.get_vocab().get(",</w>"), model.words)
    return [tokens[start:end] for start, end in zip(starts, [*starts[1:], len(ids)])]


def parsed(prompt: str, weights: str, words: Iterable[str]) -> list[list[Part]]:
    """`parse`, which sees a character without meaning for a learned word that has signs in it, as `<cat--1>`."""
    check_text(prompt, "the prompt")
    marked = sorted((word for word in words if SIGNS.search(word)), key=len, reverse=True)
    said: list[str] = []
    if marked:
        found = re.compile("|".join(map(re.escape, marked)), re.IGNORECASE)
        prompt = found.sub(lambda match: said.append(match[0]) or chr(PRIVATE + len(said) - 1), prompt)
    back = {PRIVATE + i: word for i, word in enumerate(said)}
    return [[(text.translate(back), weight) for text, weight in section] for section in parse(prompt, weights)]


def hidden_state(model: Any, ids: Tensor, mask: Tensor | None = None, clip_skip: int = 0) -> Tensor:
    """The text encoder's output for tokens (b, m), or that of a layer before, (b, m, d), normalised all the same.
    `mask`: (b, m), 0 at tokens that no other looks at."""
    encoder = model.text_encoder
    if not clip_skip:
        return encoder(ids, attention_mask=mask).last_hidden_state
    states = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return getattr(encoder, "text_model", encoder).final_layer_norm(states[-1 - clip_skip])


def in_context(
    model: Any, chunks: Sequence[Chunk], rule: Callable[..., Tensor] | None, hidden: Callable[..., Tensor]
) -> Tensor:
    """Chunks to contexts, (b, m, d), with their weights by the rule."""
    tokenizer, room, device = model.tokenizer, model.tokenizer.model_max_length - 2, model.text_encoder.device
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[begin, *c.ids, end, *[pad] * (room - len(c.ids))] for c in [*chunks, Chunk()]]
    *ids, nothing = torch.tensor(rows, device=device).split(1)  # 1 m
    contexts = hidden(torch.cat(ids))  # b m d
    if rule is None:
        return contexts
    entries = lambda context: context.float().unflatten(1, (-1, room + 2))[0]  # noqa: E731 -- of a `VectorTable`: n m d
    found = []
    for one, chunk, context in zip(ids, chunks, contexts.split(1)):
        weights = torch.ones(one.shape[1], 1, device=device)  # m 1
        parts = torch.full_like(one, -1)  # 1 m
        for at, part in enumerate(chunk.parts, 1):
            weights[at], parts[0, at] = chunk.weights[part], part
        if (weights != 1).any():
            without = lambda part, one=one, parts=parts: entries(hidden(one, (parts != part).long()))  # noqa: E731
            weighted = rule(entries(context), weights, chunk, without, entries(hidden(nothing)))
            context = weighted.flatten(0, 1)[None].to(context.dtype)
        found.append(context)
    return torch.cat(found)
