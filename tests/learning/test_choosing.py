"""The search for an initializer token: the ranking is the loss's derivative, and what is found fits the images."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import pictures, seeded

import minti
import world
from minti.embeddings import write_embeddings
from minti.formats.image_files import open_folder
from minti.personalization.initializer_search import choose_initializer, first_order_changes
from minti.personalization.vocabulary import known_words
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import TrainingImages, batch_loss

CONCEPT = Path(__file__).parents[2] / "examples/concepts/red-diamond-pink-belt"
CONFIG = minti.TextualInversionConfig(templates=("a photo of a {}",), batch_size=4)


def fixed_set(model, images, size=4):
    model.freeze()
    return ValidationSet(TrainingImages(model, images), size, seeded())


def loss_of(model, fixed, prompts):
    return fixed.mean(partial(batch_loss, model), prompts, 4)


@pytest.mark.parametrize("start", [None, "toy"])
def test_the_ranking_is_the_derivative_of_the_loss_towards_each_word(tiny, tmp_path, start):
    """Against a difference quotient: a word is learned that lies a little way from here towards the other."""
    fixed, embedding = fixed_set(tiny, pictures()), tiny.text_encoder.get_input_embeddings()
    words = dict(itertools.islice(known_words(tiny).items(), 12)) | {"toy": known_words(tiny)["toy"]}
    changes = first_order_changes(tiny, fixed, words, CONFIG.templates, start)
    vocabulary = embedding.weight[list(words.values())].detach().clone()
    here = vocabulary.mean(dim=0) if start is None else embedding.weight[words[start]].detach().clone()
    step = 1e-2
    for i in range(0, len(words), 3):
        losses = []
        for sign in (1, -1):
            name = f"<{'plus' if sign > 0 else 'minus'}-{i}>"
            write_embeddings(tmp_path / "w.safetensors", {name: (here + sign * step * (vocabulary[i] - here))[None]})
            minti.load_embeddings(tiny, tmp_path / "w.safetensors")
            losses.append(loss_of(tiny, fixed, [f"a photo of a {name}"]))
        expected = (losses[0] - losses[1]) / (2 * step)
        assert changes[i].item() == pytest.approx(expected, rel=0.05, abs=2e-5), i


def test_nothing_in_the_model_changes(tiny):
    embedding = tiny.text_encoder.get_input_embeddings()
    before, size = embedding.weight.clone(), len(tiny.tokenizer)
    tiny.unet.gradient_checkpointing(True)
    choose_initializer(tiny, CONFIG, pictures(), tried=2, rounds=2)
    assert tiny.unet.mid_block.checkpointing
    assert torch.equal(embedding.weight, before)
    assert len(tiny.tokenizer) == size
    assert not embedding._forward_hooks
    assert not any(p.requires_grad or p.grad is not None for p in tiny.text_encoder.parameters())


@pytest.mark.slow
def test_the_losses_are_those_of_the_words_and_the_best_comes_first(tiny):
    found = choose_initializer(tiny, CONFIG, pictures(), tried=3, rounds=2)
    assert 3 <= len(found) <= 6
    assert [loss for _, loss in found] == sorted(loss for _, loss in found)
    fixed = ValidationSet(TrainingImages(tiny, pictures()), 16, seeded(CONFIG.seed))
    for word, loss in found:
        assert loss_of(tiny, fixed, [f"a photo of a {word}"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_toy_without_a_name_gets_a_word_that_is_true_of_it():
    """A word for one of its attributes, or the name of a toy that shares most of them; better than "toy" anyway."""
    model, config = minti.StableDiffusion.from_pretrained(), minti.TextualInversionConfig()
    images = open_folder(CONCEPT)
    (word, loss), *_ = choose_initializer(model, config, images)
    looks = CONCEPT.name.split("-")
    if word in world.NAMED:
        assert len(set(vars(world.NAMED[word]).values()) & set(looks)) >= 3
    else:
        assert word in looks
    fixed = ValidationSet(TrainingImages(model, images), 16, seeded(0))
    assert loss < loss_of(model, fixed, ["a photo of a toy", "a toy", "toy"])


def test_a_vocabulary_without_words(tiny, monkeypatch):
    monkeypatch.setattr("minti.personalization.initializer_search.known_words", lambda model: {"a": 1, "7": 2, "->": 3})
    with pytest.raises(ValueError, match="has no word to start from; start from random vectors"):
        choose_initializer(tiny, CONFIG, pictures())
