"""What a new word begins as: a known word's row, random rows, or those of a phrase.

For a phrase ("yellow moon") they are found. The text encoder is causal, so behind the end of a prompt every place has
read all of it. There the prompt with the phrase ("a photo of a yellow moon") is compared with that with the word ("a
photo of a <concept>"), and the word's rows go where the difference is least: a fit to the text encoder alone, without a
picture and without the UNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minti.machine.messages import quoted
from minti.machine.noise import randn
from minti.machine.processes import add_up, world_size
from minti.model import StableDiffusion
from minti.parts.word import Word
from minti.text import encode, token_ids, tokenize, tried_word
from minti.words.known import is_phrase, known_ids

STEPS = 100


@torch.no_grad()
def initial_rows(
    model: StableDiffusion,
    begin: str | None,
    count: int = 1,
    seed: int = 0,
    templates: Sequence[str] = ("{}",),
    placeholder: str = "<concept>",
) -> Tensor:
    """What a new word begins as, (count, d); nothing in the model changes (lecture notes `002`, 16).

    `begin`: a known word, whose row is copied; a phrase, which the word, `placeholder`, is to say in the `templates`,
    float32; or None, normal numbers, in every dimension with the vocabulary's mean and spread, float32, from `seed`.

    Raises ValueError: a word is not a single token; the vocabulary does not know a phrase's words, or a prompt is too
    long with them.
    """
    weight = model.text_encoder.get_input_embeddings().weight
    if is_phrase(begin):
        known = torch.tensor(known_ids(model, begin))
        phrases, length = [template.replace("{}", begin) for template in templates], model.tokenizer.model_max_length
        for phrase in phrases:
            if len(token_ids(phrase, model.tokenizer, model.words)) > length - 2:
                too_long = f"too long for the {length} tokens of the context; begin with a shorter phrase"
                raise ValueError(f"the prompt {quoted(phrase)} is {too_long}")
        parts = [part if len(part) else known[-1:] for part in known.tensor_split(count)]
        rows = torch.stack([weight[part].float().mean(dim=0) for part in parts])
        return fit(model, rows, placeholder, [template.replace("{}", placeholder) for template in templates], phrases)
    if begin is not None:
        return weight[known_ids(model, begin)].repeat(count, 1)
    vocabulary = weight[: model.tokenizer.vocab_size].float()
    generator = torch.Generator().manual_seed(seed)
    noise = randn((count, weight.shape[1]), generator, weight.device, torch.float32)
    return vocabulary.mean(dim=0) + vocabulary.std(dim=0) * noise


def fit(model: StableDiffusion, rows: Tensor, placeholder: str, words: Sequence[str], phrases: Sequence[str]) -> Tensor:
    """Rows, (k, d) float32, so that prompts `words` are encoded nearly as prompts `phrases`, the same in every
    process; the search begins at `rows`, and the tokenizer does not know the `placeholder` yet."""
    tried, ids = tried_word(model.tokenizer, placeholder, len(rows))
    mine = tokenize(words, tried, model.words | {placeholder: ids})  # b m
    theirs = model.tokenize(phrases)
    # Where the longer of both prompts has ended; from there on both have the same tokens.
    eos = model.tokenizer.eos_token_id
    ends = torch.maximum(*((prompts == eos).int().argmax(dim=1) for prompts in (mine, theirs)))
    wanted = encode(theirs, model.text_encoder).float()  # b m d
    # The word's tokens have no rows yet: it borrows tokens that no prompt uses.
    used = set(mine.flatten().tolist())
    borrowed = next(i for i in range(ids[0]) if not used & set(range(i, i + len(ids))))
    mine[mine >= ids[0]] += borrowed - ids[0]
    word, weight = Word(rows, borrowed), model.text_encoder.get_input_embeddings().weight
    optimizer = torch.optim.Adam(word.trained(), lr=0.3 * weight.float().square().mean().sqrt().item())
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=STEPS)
    for step in range(STEPS):
        i = slice(step % len(mine), step % len(mine) + 1)
        with torch.enable_grad(), word.inside(model):
            got = encode(mine[i], model.text_encoder).float()
            difference = (got - wanted[i])[:, ends[i].item() :].square().mean()
            (word.values.grad,) = torch.autograd.grad(difference, [word.values])
        optimizer.step()
        rates.step()
    return add_up(word.values.detach()) / world_size()
