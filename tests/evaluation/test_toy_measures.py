"""The toybox's own measures: its CLIP, its classifier's (the judge's) sentences, outlines that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import minti
import painting
import world
from draw_concepts import concept_name, concept_pictures
from measure import load_judge, sentence, tally, toy_of, wanted
from minti.evaluation.clip_scores import among_themselves, mean_similarity
from toy_clip import load_toy_clip
from toy_measures import attention_inside


def to_pil(array):
    return Image.fromarray((array * 255).round().astype(np.uint8))


@pytest.mark.parametrize("shape", world.SHAPES)
def test_an_outline_is_where_the_toy_is(shape):
    """White toys on black: every pixel wholly inside is bright, every pixel wholly outside is dark."""
    toys = tuple(world.Toy(shape, "spot", "white", "pink") for _ in range(2))
    for count in (1, 2):
        scene = world.Scene(toys[:count], "small", "on the left", "black", "photo")
        drawn = painting.draw(scene, np.random.default_rng(5)).min(axis=2)
        inside = painting.outline(scene, np.random.default_rng(5))
        assert drawn[inside == 1].min() > 0.35
        assert drawn[inside == 0].max() < 0.15
        assert (inside == 1).sum() > 100 * count


def test_the_world_still_draws_the_bundled_concepts():
    """Their files were drawn before outlines existed; see also `test_toybox`."""
    folder = minti.TOYBOX.parents[1] / "examples" / "concepts"
    toy = world.TEST_TOYS[0]
    files = sorted((folder / concept_name(toy)).glob("*.png"))
    for file, picture in zip(files, concept_pictures(toy), strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(to_pil(picture)))
    assert toy_of(folder / concept_name(toy)) == toy
    assert toy_of(folder) is None


def test_the_clip_tells_toys_and_styles_apart(toybox):
    """Images are nearest to their own caption, and those of one toy nearer to each other than to another's."""
    clip = load_toy_clip(toybox, minti.TOYBOX)
    captions, pictures = [], []
    for style, text in world.STYLES.items():
        scene = world.Scene((world.Toy("heart", "belt", "red", "white"),), "big", "in the middle", "teal", style)
        pictures.append(to_pil(painting.draw(scene, np.random.default_rng(1))))
        captions.append(f"{text} a heart")
    similarity = clip.images(pictures) @ clip.texts(captions).T
    assert similarity.argmax(dim=1).tolist() == list(range(len(captions)))
    a, b = (clip.images([to_pil(p) for p in concept_pictures(toy)]) for toy in world.TEST_TOYS[:2])
    torch.testing.assert_close(a.norm(dim=1), torch.ones(len(a)))
    assert min(among_themselves(a), among_themselves(b)) > mean_similarity(a, b) + 0.2


def test_what_a_prompt_asks_for():
    asked = wanted("a black and white photo of a small <x> at the top on a teal background")
    assert asked == {"style": "black and white", "place": "at the top", "size": "small"}  # the teal cannot be seen
    pair = wanted("a photo of a <x> next to a <y> on a sand background", toys=2)
    assert pair == {"count": "two", "style": "photo", "background": "sand"}
    assert wanted("<x>") == {}


def test_the_tally_of_true_images_is_full_and_of_wrong_ones_says_what_is_lost():
    judge = load_judge(minti.TOYBOX)
    toy = world.Toy("heart", "side", "red", "white")
    wrong = replace(toy, second="blue")
    scenes = [world.Scene((t,), "big", "in the middle", "teal", "cartoon") for t in (toy, toy, wrong)]
    pictures = [to_pil(painting.draw(scene, np.random.default_rng(i))) for i, scene in enumerate(scenes)]
    prompt = "a cartoon of a <x> on a teal background"
    asked, kept = tally(judge, pictures, prompt, [toy])
    assert asked == {"style": 3, "background": 3, "all": 3}
    assert kept == {"shape": 3, "pattern": 3, "main": 3, "second": 2, "all": 2}
    said = sentence([asked, kept], ["<x>"], 3)
    assert said == "obeys the style and background; <x> loses its second colour in 1 of 3"

    other = world.Toy("square", "spot", "green", "yellow")
    pair = world.Scene((other, toy), "small", "in the middle", "grey", "photo")  # the other way round than the prompt
    pictures = [to_pil(painting.draw(pair, np.random.default_rng(3)))]
    asked, first, second = tally(judge, pictures, "a photo of a <x> next to a <y>", [toy, other])
    assert (asked["all"], first["all"], second["all"]) == (1, 1, 1)
    said = sentence([asked, first, second], ["<x>", "<y>"], 1)
    assert said.endswith("<x> keeps all that can be seen of it; <y> keeps all that can be seen of it")


def test_a_name_looks_at_its_toy_and_other_words_do_less(toybox):
    """The measure on a word whose answer is known: a name of the world, trained with the model."""
    name, toy = next(iter(world.NAMED.items()))
    shares = attention_inside(toybox, toy, "a photo of a {}", [name], count=8, timesteps=(300, 500))
    chance = shares["chance"][0]
    assert shares[name][0] > 1.5 * chance
    others = [shares[f"{word}, beside {name}"][0] for word in ("a", "photo", "of")]
    assert max(others) < shares[name][0]
    assert min(others) < chance
