"""Removing a word from a model, and what becomes of a run that was learning it, or one behind it."""

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

from minti.model import StableDiffusion
from minti.personalization.initialization import learned_vectors
from minti.personalization.vocabulary import is_learned, known_ids, words_of
from minti.runs.messages import short_repr
from minti.runs.word_checks import check_new_word
from minti.textual_inversion import LearnedEmbedding
from minti.training import TrainingError
from minti.wrapper import TrainingWrapper


def remove_word(model: StableDiffusion, placeholder: str) -> None:
    """Removes an added word. The words behind it get new token ids: they stay as they are, and a run that was training
    one, or this word, is over. Raises ValueError: there is no such added word."""
    if model.words.get(placeholder, [0])[0] < len(model.original_tokenizer or model.tokenizer):
        raise ValueError(f"{short_repr(placeholder)} is no word that was added to this model")
    learning = dict(model.learning)
    attached = [adapter for adapter in learning.values() if adapter._attached]
    for adapter in attached:
        adapter.after_step(model)
    vectors = {word: adapter.values.detach().clone() for word, adapter in learning.items()}
    take_out(model, placeholder)
    for word in learning.keys() - model.learning.keys():
        retire(learning[word], vectors[word])
    for adapter in attached:  # which may have a copy of the longer matrix
        if adapter in model.learning.values():
            adapter.before_step(model, None)


def retire(adapter: Any, vectors: Tensor) -> None:
    """Ends the learning of a word that is gone, or has other token ids: the adapter keeps its vectors, (k, d), for
    whoever saves them, and touches the model no more, even where it is attached."""
    if isinstance(adapter, LearnedEmbedding):
        adapter.first = 2**40  # the id of no token
    else:
        adapter.embedding, adapter.own, adapter.before = (nn.Embedding.from_pretrained(vectors),), slice(0, None), None
    adapter.hooks = adapter.before_step = partial(refuse, adapter.name)
    adapter.after_step = nothing


def refuse(name: str, *_: Any) -> None:
    """Raises TrainingError: an adapter was retired."""
    raise TrainingError(f"{name} was removed, begun anew, or got other token ids as another was; this run is over")


def nothing(*_: Any) -> None:
    """Does nothing."""


def take_out(model: StableDiffusion, placeholder: str) -> None:
    """Takes a word out of tokenizer and matrix; what has learned it, or one behind it, is told nothing."""
    layer = model.text_encoder.get_input_embeddings()
    weight = layer.weight.detach()
    before, first = model.words, len(model.original_tokenizer)
    vectors = {word: weight[ids].clone() for word, ids in before.items() if word != placeholder and ids[0] >= first}
    model.tokenizer, model.words = copy.deepcopy(model.original_tokenizer), words_of(model.original_tokenizer)
    layer.weight.data = weight[:first].clone()
    layer.num_embeddings = model.text_encoder.config.vocab_size = first
    for word, rows in vectors.items():
        model.add_word(word, rows)
    model.learning = {word: one for word, one in model.learning.items() if model.words.get(word) == before[word]}


def begin_anew(wrapper: TrainingWrapper) -> None:
    """Removes a word that textual inversion itself has begun in this model, so that a notebook cell can run twice.
    Raises ValueError: another word was added behind it, whose token ids would change; or the new settings are refused,
    and the word stays."""
    model, placeholder = wrapper.model, wrapper.config.placeholder_token
    if list(model.words)[-1] != placeholder:
        behind = f"{list(model.words)[-1]} was added behind it; load the model anew, or choose another placeholder"
        raise ValueError(f"{placeholder} cannot be learned a second time: {behind}")
    adapter, weight = model.learning[placeholder], model.text_encoder.get_input_embeddings().weight
    vectors = weight[model.words[placeholder]].detach().clone()
    take_out(model, placeholder)
    try:
        check_new_word(wrapper)
        if is_learned(wrapper.initializer_token):
            learned_vectors(wrapper)
        elif wrapper.initializer_token is not None:
            known_ids(model, wrapper.initializer_token)
    except (OSError, ValueError):
        model.add_word(placeholder, vectors)
        model.learning[placeholder] = adapter
        raise
    retire(adapter, vectors)
    print(f"{placeholder} was learned in this model before; it begins anew")
