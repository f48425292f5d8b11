"""Words of fewer and of more than five images: which images those are, and that a word is learned from no others."""

from itertools import pairwise

import pytest
import torch

import compare_words
import minti
import world
from compare_words import Way, Words, shown
from draw_concepts import concept_scenes
from held_out import pixels_of
from measure import load_judge, verdicts
from minti.embeddings import read_embeddings


@pytest.mark.fast
@pytest.mark.parametrize("toy", [0, 3, 11])
def test_fewer_images_are_among_more_and_begin_at_another_for_each_toy(toy):
    for seed in range(5):
        sets = [set(shown(toy, seed, count)) for count in (1, 2, 3, 4, 5)]
        assert [len(chosen) for chosen in sets] == [1, 2, 3, 4, 5]
        assert all(less < more for less, more in pairwise(sets))
        assert shown(toy, seed, 5) == [0, 1, 2, 3, 4] and shown(toy, seed, 10) == list(range(10))
    assert {shown(other, 0, 1)[0] for other in range(toy, toy + 5)} == {0, 1, 2, 3, 4}


@pytest.mark.fast
def test_the_images_show_what_their_scenes_say():
    """The judge is right about background, place and size of true images in all but a few of a thousand."""
    judge, right = load_judge(minti.TOYBOX), []
    for toy in world.HELD_OUT[:4]:
        scenes, pixels = concept_scenes(toy, 10), pixels_of(toy, 10)
        assert torch.equal(pixels[:5], pixels_of(toy))
        for scene, seen in zip(scenes, verdicts(judge, pixels)):
            right += [seen[name] == getattr(scene, name) for name in compare_words.OWN]
    assert sum(right) >= len(right) - 1


@pytest.mark.slow
def test_a_word_of_two_images_is_that_which_these_two_teach(tmp_path, monkeypatch):
    """By the core's own loop, without early stopping, on these two images; other images teach another."""
    monkeypatch.setitem(compare_words.WAYS, "two", Way({"steps": 3}, images=2))
    words = Words.__new__(Words)
    words.folder = tmp_path
    words.learned(minti.StableDiffusion.from_pretrained(), "two", 3, 1)
    (rows,) = read_embeddings(words.path("two", 3, 1, ".safetensors")).values()

    def taught(images):
        config = minti.TextualInversionConfig(
            placeholder_token=compare_words.WORD, initializer_token="toy", seed=1, steps=3
        )
        word = minti.TrainingWrapper(minti.StableDiffusion.from_pretrained(), config)
        for _ in minti.textual_inversion(word, pixels_of(world.HELD_OUT[3])[images]):
            pass
        return word.embedding.values.detach()

    assert shown(3, 1, 2) == [0, 4]
    assert torch.equal(rows, taught([0, 4]))
    assert not torch.equal(rows, taught([0, 1]))
