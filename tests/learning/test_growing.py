"""The number of vectors: one more is kept if it pays by more than chance, and is removed without a trace if not."""

import math
from functools import partial

import pytest
import torch
from helpers import learning, pictures, seeded, write

import minti
from minti.embeddings import write_embeddings
from minti.personalization.num_vectors_search import NumVectorsSearch, Restarts, losses_of, paired
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import TrainingImages, batch_loss

CONFIG = {"placeholder_token": "<cat>", "initializer_token": "toy", "learning_rate": 0.1, "steps": 12, "batch_size": 4}


def learn(word):
    for _ in learning(word):
        pass


def spoil(wrapper):
    """Vectors that no training would end with."""
    minti.prepare_for_textual_inversion(wrapper)
    write(wrapper, 50 * torch.randn(wrapper.embedding.values.shape, generator=seeded(3)))
    wrapper.detach()


def grown(model, *trainings, **options):
    word = NumVectorsSearch(
        model, minti.TextualInversionConfig(**CONFIG | options), pictures(), most=len(trainings), size=16
    )
    for wrapper, training in zip(word, trainings, strict=True):
        training(wrapper)
    return word


def test_a_difference_of_pairs_and_its_standard_error():
    before, after = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 2, 2, 4])
    gain, error = paired(before, after)  # differences 1, 0, 1, 0: mean 1/2, variance 1/3
    assert gain == 0.5
    assert error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert all(math.isnan(value) for value in paired(None, after))


def test_the_losses_of_the_images_have_the_loss_of_the_set_for_their_mean(tiny):
    wrapper = minti.TrainingWrapper(tiny, minti.TextualInversionConfig(**CONFIG | {"steps": 1}))
    learn(wrapper)
    fixed = ValidationSet(TrainingImages(tiny, pictures()), 7, seeded())
    losses = losses_of(tiny, fixed, wrapper.prompts)
    assert losses.shape == (7,)
    assert len(set(losses.tolist())) == 7
    assert losses.mean().item() == pytest.approx(fixed.mean(partial(batch_loss, tiny), wrapper.prompts, 2), rel=1e-5)


def test_a_vector_that_pays_is_kept(tiny):
    word = grown(tiny, spoil, learn)
    first, second = word.decisions
    assert (first.label, first.kept, second.label, second.kept) == ("1 vector", True, "2 vectors", True)
    assert second.gain > 2 * second.error > 0
    assert second.gain == pytest.approx(first.loss - second.loss, rel=1e-4)
    assert word.best.config.num_vectors == 2


def test_a_vector_that_does_not_pay_is_forgotten(tiny):
    word = grown(tiny, learn, spoil)
    assert [decision.kept for decision in word.decisions] == [True, False]
    assert word.decisions[1].gain < 0
    assert word.best.config.num_vectors == 1


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [(learn, spoil), (spoil, learn)])
@pytest.mark.parametrize("row_update", ["new_rows", "restore"])
def test_the_model_ends_with_what_was_kept_and_nothing_else(tiny, tiny_folder, tmp_path, trainings, row_update):
    """As if a fresh model had loaded the word from its file; and the model's own words are untouched."""
    embedding = tiny.text_encoder.get_input_embeddings()
    old = embedding.weight.clone()
    word = grown(tiny, *trainings, row_update=row_update)
    minti.save_embeddings(word.best, tmp_path / "cat.safetensors")
    fresh = minti.StableDiffusion.from_pretrained(tiny_folder)
    minti.load_embeddings(fresh, tmp_path / "cat.safetensors")
    assert tiny.tokenizer.get_vocab() == fresh.tokenizer.get_vocab() and word.best.tokenizer is tiny.tokenizer
    assert len(tiny.tokenizer) == len(old) + word.best.config.num_vectors
    assert torch.equal(tiny.encode_prompt("a <cat>"), fresh.encode_prompt("a <cat>"))
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[: len(old)], old)
    assert not embedding._forward_hooks


@pytest.mark.slow
def test_every_run_is_that_of_a_word_with_so_many_vectors(tiny, tiny_folder):
    """To the last bit: nothing of the runs before is left."""
    word = grown(tiny, spoil, learn)
    alone = minti.TrainingWrapper(
        minti.StableDiffusion.from_pretrained(tiny_folder), minti.TextualInversionConfig(**CONFIG, num_vectors=2)
    )
    learn(alone)
    assert torch.equal(word.best.embedding.values, alone.embedding.values)


def test_no_other_word_meanwhile(tiny, tmp_path):
    write_embeddings(tmp_path / "dog.safetensors", {"<dog>": torch.randn(1, 48)})
    word = iter(NumVectorsSearch(tiny, minti.TextualInversionConfig(**CONFIG | {"steps": 1}), pictures(), size=2))
    learn(next(word))
    minti.load_embeddings(tiny, tmp_path / "dog.safetensors")
    with pytest.raises(ValueError, match="no word can be added while the vectors of <cat> are chosen"):
        next(word)


def test_fewer_at_most_than_to_begin_with(tiny):
    with pytest.raises(ValueError, match="starts with 3 vectors, and 2 are the most"):
        NumVectorsSearch(tiny, minti.TextualInversionConfig(**CONFIG, num_vectors=3), pictures(), most=2)


@pytest.mark.parametrize("begun", [False, True])
def test_a_search_that_is_left_early_leaves_the_best_so_far(tiny, begun):
    """Before or within the second run; tokenizer and matrix know the word with one vector, that of the first."""
    size = len(tiny.tokenizer)
    search = NumVectorsSearch(tiny, minti.TextualInversionConfig(**CONFIG), pictures(), size=2)
    next(iter(search))
    assert not tiny.words and len(tiny.tokenizer) == size
    for word in search:
        if word.config.num_vectors == 2:
            if begun:
                next(learning(word))
            break
        spoil(word)
        expected = word.embedding.values.detach().clone()
    embedding = tiny.text_encoder.get_input_embeddings()
    assert tiny.words == {"<cat>": [size]} and len(tiny.tokenizer) == len(embedding.weight) == size + 1
    assert torch.equal(embedding.weight[size:], expected)
    assert torch.equal(search.best.embedding.values, expected)
    assert tiny.tokenizer("<cat>", add_special_tokens=False).input_ids == [size]
    assert not embedding._forward_hooks


@pytest.mark.parametrize(("trainings", "best"), [((spoil, learn, spoil), 1), ((learn, spoil, spoil), 0)])
def test_of_several_starts_the_best_by_the_same_draws_is_kept(tiny, tiny_folder, trainings, best):
    """The run of another seed is that of its config alone, to the last bit; the model has the best word, once."""
    size = len(tiny.tokenizer)
    search = Restarts(tiny, minti.TextualInversionConfig(**CONFIG, seed=5), pictures(), most=3, size=16)
    for wrapper, training in zip(search, trainings, strict=True):
        training(wrapper)
    assert [decision.label for decision in search.decisions] == ["seed 5", "seed 6", "seed 7"]
    losses = [decision.loss for decision in search.decisions]
    assert search.best.config.seed == 5 + best == 5 + losses.index(min(losses))
    alone = minti.TrainingWrapper(
        minti.StableDiffusion.from_pretrained(tiny_folder), minti.TextualInversionConfig(**CONFIG, seed=5 + best)
    )
    learn(alone)
    assert torch.equal(search.best.embedding.values, alone.embedding.values)
    assert tiny.words == {"<cat>": [size]}
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[size:], alone.embedding.values)
