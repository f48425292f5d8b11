"""Initial embedding vectors: a known word's, random ones (lecture notes `002`, 16), or those of a phrase."""

import copy
from dataclasses import replace

import pytest
import torch

import minti
from minti.personalization.vocabulary import known_ids, known_words
from minti.text import single_token_id

TEMPLATES = ("a photo of a {}", "{}", "a {} on a {}")


def wrapper(model, token, count, seed=0, templates=TEMPLATES):
    config = {"placeholder_token": "<new>", "initializer_token": token, "num_vectors": count, "seed": seed}
    return minti.TrainingWrapper(model, minti.TextualInversionConfig(**config, templates=templates))


def initial_vectors(*args):
    return wrapper(*args).initial_vectors()


def test_copies_of_the_initializer(tiny):
    rows = initial_vectors(tiny, "cat", 3)
    cat = tiny.text_encoder.get_input_embeddings().weight[single_token_id(tiny.tokenizer, "cat")]
    assert torch.equal(rows, cat.expand(3, -1))


def test_the_default_initializer_is_the_model_s(tiny, toybox):
    """SD v1.4's, where the model's folder names none."""
    of = lambda model: minti.TrainingWrapper(model, minti.TextualInversionConfig())  # noqa: E731
    assert (of(toybox).initializer_token, of(tiny).initializer_token) == ("toy", "object")
    tiny.defaults = replace(tiny.defaults, initializer_token="cat")
    assert torch.equal(of(tiny).initial_vectors(), initial_vectors(tiny, "cat", 1))


def test_random_vectors_are_spread_as_the_vocabulary_is(tiny):
    """Standardised by the vocabulary's mean and spread in every dimension, they are standard normal."""
    weight = tiny.text_encoder.get_input_embeddings().weight
    with torch.no_grad():  # a vocabulary that lies away from zero, and wider in some dimensions
        weight.mul_(torch.linspace(0.5, 3, weight.shape[1])).add_(torch.linspace(-1, 1, weight.shape[1]))
    n = 4000
    rows = torch.cat([initial_vectors(tiny, None, n // 4, seed) for seed in range(4)])
    z = (rows - weight.mean(dim=0)) / weight.std(dim=0)
    assert z.mean(dim=0).abs().max() < 5 / n**0.5
    assert (z.var(dim=0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 0.1  # normal, not uniform


def test_random_vectors_follow_the_seed(tiny):
    first, same, other = (initial_vectors(tiny, None, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_random_vectors_are_made_where_the_embedding_is(tiny):
    """On torch's device without numbers, which mixes with no other."""
    word = wrapper(tiny, None, 2)
    tiny.text_encoder.to("meta")
    rows = word.initial_vectors()
    assert (rows.device.type, rows.dtype, rows.shape) == ("meta", torch.float32, (2, 48))


def test_a_word_is_learned_from_random_vectors(tiny):
    options = {"initializer_token": None, "num_vectors": 2, "steps": 6, "batch_size": 2, "learning_rate": 0.01}
    w = minti.TrainingWrapper(tiny, minti.TextualInversionConfig(templates=("a {}",), **options))
    begin = initial_vectors(tiny, None, 2)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for state in minti.textual_inversion(w, pictures):
        assert state.gradient_norm > 0
    moved = (w.embedding.values.detach() - begin).abs()
    assert 0 < moved.max() < 0.1  # six steps of 0.01 from where it began


def encoded(tiny, begin, count=1, templates=TEMPLATES):
    """The encoded prompts with a word that starts so, behind their end."""
    tiny = copy.deepcopy(tiny)
    rows = initial_vectors(tiny, begin, count, 0, templates)
    tiny.add_word("<new>", rows)
    with torch.no_grad():
        return tiny.encode_prompt([template.replace("{}", "<new>") for template in templates])[:, END:]


END = 12  # behind the end of the longest prompt


def test_a_vector_says_nearly_what_a_phrase_says(tiny):
    """Less than half as far from it as any known word."""
    phrase = "red dog"
    with torch.no_grad():
        wanted = tiny.encode_prompt([template.replace("{}", phrase) for template in TEMPLATES])[:, END:]
    distance = lambda begin: (encoded(tiny, begin) - wanted).norm().item()  # noqa: E731
    known = [word for word in known_words(tiny) if word.isalpha() and len(word) > 1]
    assert len(known) >= 10
    assert distance(phrase) < 0.5 * min(distance(word) for word in known)


@pytest.mark.parametrize("templates", [("a photo of a {}",), TEMPLATES])
def test_as_many_vectors_as_the_phrase_has_tokens_are_its_own(tiny, templates):
    weight = tiny.text_encoder.get_input_embeddings().weight
    rows = initial_vectors(tiny, "a red dog", 3, 0, templates)
    own = weight[[single_token_id(tiny.tokenizer, word) for word in ("a", "red", "dog")]]
    torch.testing.assert_close(rows, own, rtol=0, atol=1e-5)


def test_more_vectors_than_the_phrase_has_tokens(tiny):
    rows = initial_vectors(tiny, "red dog", 4, 0)
    assert rows.shape == (4, 48)
    assert rows.isfinite().all()


def test_a_phrase_is_fitted_without_a_trace(tiny):
    before = {key: value.clone() for key, value in tiny.text_encoder.state_dict().items()}
    vocabulary, embedding = tiny.tokenizer.get_vocab(), tiny.text_encoder.get_input_embeddings()
    first = initial_vectors(tiny, "red dog", 1, 0)
    assert all(torch.equal(before[key], value) for key, value in tiny.text_encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.text_encoder.parameters())
    assert tiny.tokenizer.get_vocab() == vocabulary
    assert not embedding._forward_hooks
    assert torch.equal(first, initial_vectors(tiny, "red dog", 1, 0))


def test_a_phrase_may_hold_a_learned_word(tiny):
    """One of two vectors, which count as two tokens."""
    learned = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    tiny.add_word("<cat>", learned)
    rows = initial_vectors(tiny, "red <cat>", 3, 0, ("a {}",))
    red = tiny.text_encoder.get_input_embeddings().weight[single_token_id(tiny.tokenizer, "red")]
    torch.testing.assert_close(rows, torch.stack([red, *learned]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("red zebra", "does not know 'zebra'"),
        ("red <|endoftext|>", "does not know '<|endoftext|>'"),
        ("red dog " * 40, "is too long for the .* tokens of the context"),
    ],
)
def test_a_phrase_that_cannot_be_said_is_refused_without_a_trace(tiny, phrase, message):
    config = minti.TextualInversionConfig(initializer_token=phrase, templates=("a {}",))
    size = len(tiny.tokenizer)
    with pytest.raises(ValueError, match=message):
        minti.prepare_for_textual_inversion(minti.TrainingWrapper(tiny, config))
    assert len(tiny.tokenizer) == size == tiny.text_encoder.get_input_embeddings().num_embeddings


def test_a_word_is_learned_from_a_phrase_in_half_precision(tiny):
    """The text encoder's vectors are bfloat16, the fit is not."""
    tiny.text_encoder.bfloat16()
    rows = initial_vectors(tiny, "red dog", 1, 0)
    assert rows.dtype == torch.float32
    exact = copy.deepcopy(tiny)
    exact.text_encoder.float()
    fitted = initial_vectors(exact, "red dog", 1, 0)
    assert (rows - fitted).norm() < 0.2 * fitted.norm()


def test_a_word_of_several_tokens_in_a_phrase_is_told():
    """The toybox has no zebra, but pieces of other words."""
    toybox = minti.StableDiffusion.from_pretrained()
    with pytest.warns(UserWarning, match="'zebra' is no single token but "):
        assert len(known_ids(toybox, "red zebra")) > 2
