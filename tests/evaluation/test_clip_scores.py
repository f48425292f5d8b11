"""CLIP scores: image alignment (likeness) and text alignment (obedience), and the CLIP that they are computed with."""

from support.rows import sentence

import pytest
import torch
from helpers import seeded
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from minti.evaluation.clip_scores import (
    MEAN,
    STD,
    Score,
    among_themselves,
    cropped,
    likeness,
    load_clip,
    mean_similarity,
    obedience,
    without_words,
)


def test_similarities_are_those_of_transformers(clip_folder):
    generator = torch.Generator().manual_seed(1)
    arrays = (torch.rand(3, 32, 32, 3, generator=generator) * 255).byte().numpy()
    pictures, texts = [Image.fromarray(array) for array in arrays], ["a red cat", "the dog"]
    clip = load_clip(str(clip_folder))
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    inputs = tokenizer(texts, padding=True, return_tensors="pt") | processor(pictures, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(clip.images(pictures) @ clip.texts(texts).T, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("width", [48, 80])
def test_images_as_tensors_are_what_the_processor_makes_of_them(clip_folder, width):
    """Shrunk with antialiasing from 48 x 48, the same but for rounding to bytes; 48 x 80 is cut afterwards."""
    values = torch.nn.functional.interpolate(torch.rand(2, 3, 6, width // 8, generator=seeded()), scale_factor=8)
    arrays = [(value * 150 + 50).byte().permute(1, 2, 0).numpy() for value in values]
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    expected = processor([Image.fromarray(array) for array in arrays], return_tensors="pt").pixel_values
    pixels = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]) / 127.5 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    found = (cropped(pixels, 32) * 0.5 + 0.5 - mean) / std
    if width == 48:
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / min(STD))
    model, clip = CLIPModel.from_pretrained(clip_folder), load_clip(str(clip_folder))
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(expected).pooler_output)
    assert (torch.cosine_similarity(clip.pixels(pixels), features) > (0.9999 if width == 48 else 0.99)).all()


def test_the_gradient_of_unlikeness_is_a_difference_quotient(clip_folder):
    unlike = load_clip(str(clip_folder)).unlikeness("a red cat")
    x, way = (torch.rand(2, 3, 48, 48, generator=seeded(i)) for i in (0, 1))
    x.requires_grad_()
    slope = torch.autograd.grad(unlike(x).sum(), x)[0]
    expected = (unlike(x.detach() + 0.01 * way) - unlike(x.detach() - 0.01 * way)) / 0.02
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close((slope * way).sum((1, 2, 3)), expected, rtol=0.02, atol=1e-5)


def test_a_clip_that_cannot_be_reached_is_named(tmp_path):
    for source in (str(tmp_path), "someone/nothing"):
        with pytest.raises(OSError, match=f"cannot reach the CLIP model {source}") as caught:
            load_clip(source)
        assert "\n" not in str(caught.value)


def unit(*angles):
    angles = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_scores_between_their_bounds():
    """In the plane: the training images at 0 and 60 degrees, the initializer's at 90, the text at 90."""
    training, drawn, initial, text = unit(0, 60), unit(30), unit(90), unit(90)
    assert mean_similarity(unit(0, 90), unit(0)) == pytest.approx(0.5)
    assert among_themselves(training) == pytest.approx(0.5)
    assert among_themselves(unit(10)) == 1
    like = likeness(drawn, initial, training)
    assert like == pytest.approx((3**0.5 / 2, 3**0.5 / 4, 0.5))
    assert like.position == pytest.approx((3**0.5 / 4) / (0.5 - 3**0.5 / 4))
    obeyed = obedience(drawn, initial, training, text)
    assert obeyed == pytest.approx((0.5, 3**0.5 / 4, 1))


def test_bounds_too_near_to_tell():
    assert Score(0.7, 0.6, 0.61).position is None
    assert Score(0.7, 0.8, 0.6).position is None


def test_prompts_without_the_word():
    assert without_words("a sketch of a {} on grey") == "a sketch of a on grey"
    assert without_words("{} next to a {}") == "next to a"


def test_the_sentence_follows_from_the_numbers():
    whole, half, none, blind = Score(0.9, 0.5, 0.9), Score(0.7, 0.5, 0.9), Score(0.5, 0.5, 0.9), Score(0.5, 0.5, 0.5)
    assert sentence({"<x>": whole}, whole, "toy") == "<x> is there; the prompt is obeyed as with 'toy'"
    said = sentence({"<x>": half, "<y>": none}, none, "toy")
    assert said.startswith("<x> is partly there (50 % of the way); <y> is hardly there (0 % of the way)")
    assert said.endswith("the prompt is hardly obeyed (0 % of 'toy')")
    assert "cannot be told" in sentence({"<x>": blind}, blind, "toy")
