"""The nearest known words of a learned embedding vector, and the diffusion loss over the timesteps."""

from support.studies import known_lengths
from support.timestep_losses import loss_over_timesteps

import pytest
import torch
import torch.nn.functional as F

import minti
from minti.evaluation.neighbours import learned_rows
from minti.personalization.vocabulary import known_words
from minti.text import single_token_id


def test_a_vector_made_of_a_known_one_finds_it(tiny):
    embedding = tiny.text_encoder.get_input_embeddings().weight
    red, dog = (embedding[single_token_id(tiny.tokenizer, word)].clone() for word in ("red", "dog"))
    tiny.add_word("<x>", torch.stack([2 * red, red + 0.5 * dog]))
    first, second = learned_rows(tiny, "<x>", count=3)
    assert (first.token, second.token) == ("<x>", "<x>_1")
    assert first.nearest[0] == ("red", pytest.approx(1, abs=1e-6))
    assert first.length == pytest.approx(2 * red.norm().item(), rel=1e-6)
    assert [word for word, _ in second.nearest[:2]] == ["red", "dog"]
    assert second.nearest[1][1] == pytest.approx(F.cosine_similarity(red + 0.5 * dog, dog, dim=0).item(), abs=1e-6)
    similarities = [similarity for _, similarity in second.nearest]
    assert similarities == sorted(similarities, reverse=True)


def test_known_words_are_whole_and_the_models_own(tiny):
    before = known_lengths(tiny)
    row = 100 * torch.ones(1, 48)
    tiny.add_word("<x>", row)
    words = known_words(tiny)
    assert {"red", "cat", "painting"} <= set(words)
    assert not {"<x>", "<|endoftext|>", "pa", "<|startoftext|>"} & set(words)
    assert torch.equal(known_lengths(tiny), before)
    matrix = tiny.text_encoder.get_input_embeddings().weight
    assert before[list(words).index("red")] == pytest.approx(matrix[words["red"]].norm().item())


def test_a_word_that_was_not_learned_is_named(tiny):
    with pytest.raises(ValueError, match="red is not a learned word"):
        learned_rows(tiny, "red")


def test_losses_are_the_loss_of_training(tiny):
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    prompts, timesteps = ["a red cat", ""], [10, 500]
    losses = loss_over_timesteps(tiny, latents, prompts, timesteps, noise)
    wrapper = minti.TrainingWrapper(tiny, minti.TextualInversionConfig())
    for i, prompt in enumerate(prompts):
        for j, t in enumerate(timesteps):
            context = tiny.encode_prompt([prompt] * 3)
            expected = minti.diffusion_loss(wrapper, latents, torch.full((3,), t), context, noise)
            assert losses[i, j] == pytest.approx(expected.item(), rel=1e-6)
    assert losses[0].tolist() != losses[1].tolist()
