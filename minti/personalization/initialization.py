"""Initial embedding vectors of a word: random ones, learned ones, or a phrase's, fitted to the text encoder.

The text encoder is causal, so behind the end of a prompt every position has read all of it. There the prompt with the
phrase ("a photo of a yellow moon") is compared with the prompt with the word ("a photo of a <concept>"), and the word's
embedding vectors are optimized until both are nearly the same: without an image, and without the UNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minti.embeddings import read_embeddings
from minti.model import StableDiffusion
from minti.personalization.vocabulary import is_learned, is_phrase, known_ids
from minti.runs.checkpoints import pixels_hash
from minti.runs.distributed import add_up, world_size
from minti.runs.messages import short_repr, shortened
from minti.runs.word_checks import check_vectors_fit, tokenizer_with
from minti.text import token_ids, tokenize
from minti.textual_inversion import LearnedEmbedding
from minti.utils import randn
from minti.wrapper import TrainingWrapper

STEPS = 100


@torch.no_grad()
def initial_vectors(wrapper: TrainingWrapper) -> Tensor:
    """The embedding vectors that a word starts from, (num_vectors, d): those of a file or tensor, a phrase, a word, or,
    for None, random ones with the vocabulary's mean and spread."""
    model, config, token = wrapper.model, wrapper.config, wrapper.initializer_token
    weight = model.text_encoder.get_input_embeddings().weight
    if is_learned(token):
        return learned_vectors(wrapper)
    if is_phrase(token):
        return phrase_vectors(model, token, config.num_vectors, wrapper.templates, config.placeholder_token)
    if token is not None:
        return weight[known_ids(model, token)].repeat(config.num_vectors, 1)
    return random_vectors(wrapper, config.num_vectors)


def random_vectors(wrapper: TrainingWrapper, count: int) -> Tensor:
    """Random vectors with the vocabulary's mean and spread, (count, d) float32, by the config's seed."""
    weight = wrapper.text_encoder.get_input_embeddings().weight.detach()[: wrapper.tokenizer.vocab_size].float()
    generator = torch.Generator().manual_seed(wrapper.config.seed)
    noise = randn((count, weight.shape[1]), generator, weight.device, torch.float32)
    return weight.mean(dim=0) + weight.std(dim=0) * noise


def learned_vectors(wrapper: TrainingWrapper) -> Tensor:
    """The vectors of a file or tensor to go on from, (num_vectors, d) float32. Where more are asked for, random ones
    follow: short beside learned ones, they change least of what these say. A hash stands for them in checkpoints.
    Raises OSError, ValueError: the file; they do not fit the model; the file has several words, or more vectors."""
    model, count, word = wrapper.model, wrapper.config.num_vectors, wrapper.config.placeholder_token
    given, name = wrapper.initializer_token, "initializer_token"
    if isinstance(given, Tensor):
        vectors = given.detach().float().reshape(-1, given.shape[-1])
    else:
        words, name = read_embeddings(given), str(given)
        if word not in words and len(words) > 1:
            several = f"{len(words)} words ({shortened(', '.join(words))}), and none is called {word}"
            raise ValueError(f"{name} holds {several}; give the new word (--placeholder) the name of one of them")
        vectors = words[word if word in words else next(iter(words))]
    check_vectors_fit(model, name, vectors)
    if len(vectors) > count:
        fewer = f"{len(vectors)} vectors, and num_vectors is {count}; set it (--vectors) to {len(vectors)} or more"
        raise ValueError(f"{name} has {fewer}")
    wrapper.metadata["initializer_token"] = f"vectors {tuple(vectors.shape)}, {pixels_hash(vectors)}"
    return torch.cat([vectors.to(model.device), random_vectors(wrapper, count - len(vectors))])


@torch.no_grad()
def phrase_vectors(
    model: StableDiffusion, phrase: str, count: int, templates: Sequence[str], placeholder: str
) -> Tensor:
    """Embedding vectors for a word, `placeholder`, that is to mean a phrase in the templates, (count, d) float32;
    nothing in the model changes. Raises ValueError: the vocabulary does not know its words, or a prompt is too long."""
    weight = model.text_encoder.get_input_embeddings().weight
    known = torch.tensor(known_ids(model, phrase))
    phrases, length = [template.replace("{}", phrase) for template in templates], model.tokenizer.model_max_length
    for prompt in phrases:
        if len(token_ids(prompt, model.tokenizer, model.words)) > length - 2:
            too_long = f"too long for the {length} tokens of the context; begin with a shorter phrase"
            raise ValueError(f"the prompt {short_repr(prompt)} is {too_long}")
    parts = [part if len(part) else known[-1:] for part in known.tensor_split(count)]
    vectors = torch.stack([weight[part].float().mean(dim=0) for part in parts])
    return fit(model, vectors, placeholder, [template.replace("{}", placeholder) for template in templates], phrases)


def fit(model: StableDiffusion, rows: Tensor, placeholder: str, words: Sequence[str], phrases: Sequence[str]) -> Tensor:
    """Embedding vectors, (k, d) float32, with which the prompts `words` are encoded nearly as the prompts `phrases`,
    the same in every process; the search starts at `rows`, and the tokenizer does not know the `placeholder` yet."""

    def encode(input_ids: Tensor) -> Tensor:
        return model.text_encoder(input_ids.to(model.text_encoder.device)).last_hidden_state

    tried, ids = tokenizer_with(model.tokenizer, placeholder, len(rows))
    mine = tokenize(words, tried, model.words | {placeholder: ids})  # b m
    theirs = model.tokenize(phrases)
    # Where the longer of both prompts has ended; from there on both have the same tokens.
    eos = model.tokenizer.eos_token_id
    ends = torch.maximum(*((prompts == eos).int().argmax(dim=1) for prompts in (mine, theirs)))
    wanted = encode(theirs).float()  # b m d
    # Unused token ids stand in for the new ones, which have no rows in the matrix yet.
    used = set(mine.flatten().tolist())
    borrowed = next(i for i in range(ids[0]) if not used & set(range(i, i + len(ids))))
    mine[mine >= ids[0]] += borrowed - ids[0]
    embedding, weight = model.text_encoder.get_input_embeddings(), model.text_encoder.get_input_embeddings().weight
    word = LearnedEmbedding(embedding, range(borrowed, borrowed + len(rows)))
    word.values.copy_(rows)
    optimizer = torch.optim.Adam(word.trainable(), lr=0.3 * weight.float().square().mean().sqrt().item())
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=STEPS)
    for step in range(STEPS):
        i = slice(step % len(mine), step % len(mine) + 1)
        with torch.enable_grad(), word.attached(model):
            got = encode(mine[i]).float()
            difference = (got - wanted[i])[:, ends[i].item() :].square().mean()
            (word.values.grad,) = torch.autograd.grad(difference, [word.values])
        optimizer.step()
        rates.step()
    return add_up(word.values.detach()) / world_size()
