"""What a word begins as: a known word's row, or rows drawn at random (lecture notes `002`, 16)."""

import torch

import minti
from minti.text import initial_rows, single_token_id


def test_copies_of_the_initializer(tiny):
    rows = initial_rows(tiny.tokenizer, tiny.text_encoder, "cat", 3)
    cat = tiny.text_encoder.get_input_embeddings().weight[single_token_id(tiny.tokenizer, "cat")]
    assert torch.equal(rows, cat.expand(3, -1))


def test_random_rows_are_spread_as_the_vocabulary_is(tiny):
    """Standardised by the vocabulary's mean and spread in every dimension, they are standard normal."""
    weight = tiny.text_encoder.get_input_embeddings().weight
    with torch.no_grad():  # a vocabulary that lies away from zero, and wider in some dimensions
        weight.mul_(torch.linspace(0.5, 3, weight.shape[1])).add_(torch.linspace(-1, 1, weight.shape[1]))
    n = 4000
    rows = initial_rows(tiny.tokenizer, tiny.text_encoder, None, n)
    z = (rows - weight.mean(dim=0)) / weight.std(dim=0)
    assert z.mean(dim=0).abs().max() < 5 / n**0.5
    assert (z.var(dim=0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 0.1  # normal, not uniform


def test_random_rows_follow_the_seed(tiny):
    first, same, other = (initial_rows(tiny.tokenizer, tiny.text_encoder, None, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_random_rows_are_made_where_the_embedding_is(tiny):
    """On torch's device without numbers, which mixes with no other."""
    tiny.text_encoder.to("meta")
    rows = initial_rows(tiny.tokenizer, tiny.text_encoder, None, 2)
    assert (rows.device.type, rows.dtype, rows.shape) == ("meta", torch.float32, (2, 48))


def test_a_word_is_learned_from_random_rows(tiny):
    options = {"initializer_token": None, "num_vectors": 2, "steps": 6, "batch_size": 2, "learning_rate": 0.01}
    w = minti.TrainingWrapper(tiny, minti.TextualInversionConfig(templates=("a {}",), **options))
    begin = initial_rows(tiny.tokenizer, tiny.text_encoder, None, 2)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for state in minti.textual_inversion(w, pictures):
        assert state.gradient_norm > 0
    moved = (w.rows.values.detach() - begin).abs()
    assert 0 < moved.max() < 0.1  # six steps of 0.01 from where it began
