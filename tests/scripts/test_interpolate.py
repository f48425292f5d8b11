"""Interpolation (lerp and slerp): variance, angles and end points."""

import importlib
from pathlib import Path

import pytest
import torch
from helpers import seeded

from minti.embeddings import write_embeddings

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def mix(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("interpolate")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_slerp_keeps_the_variance_and_lerp_does_not(mix, share):
    """Of two independent standard normal noises: 1, and (1 - s)^2 + s^2."""
    a, b = (torch.randn(2, 4, 200, 200, generator=seeded(seed)) for seed in (1, 2))
    assert mix.slerp(a, b, share).var().item() == pytest.approx(1, abs=0.02)
    assert mix.lerp(a, b, share).var().item() == pytest.approx((1 - share) ** 2 + share**2, abs=0.02)


def test_slerp_has_an_even_angle(mix):
    """In the plane: from (1, 0) to (0, 1) by 30°, each image by its own angle."""
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.5, 0.75**0.5]])
    expected = torch.tensor([[0.75**0.5, 0.5], [torch.pi / 9, torch.pi / 9]])
    expected[1] = torch.stack([expected[1, 0].cos(), expected[1, 1].sin()])
    torch.testing.assert_close(mix.slerp(a, b, 1 / 3), expected)


def test_the_notes_mixture(mix):
    """`002`, 15, class mixing: 0.7 [human] + 0.3 [food]."""
    human, food = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    torch.testing.assert_close(mix.lerp(human, food, 0.3), torch.tensor([0.7, 0.3, 0]))


@pytest.mark.parametrize("way", ["lerp", "slerp"])
def test_the_ends_are_the_ends(mix, way):
    a, b = (torch.randn(1, 4, 8, 8, generator=seeded(seed)) for seed in (1, 2))
    between = getattr(mix, way)
    assert torch.equal(between(a, b, 0.0), a)
    assert torch.equal(between(a, b, 1.0), b)


def test_between_two_words_the_sphere_keeps_their_length(mix, tiny, tmp_path):
    """Half way between (1, 0) and (0, 1) both are at 45°; on the line the vector has 0.71 of the length."""
    ends = torch.eye(48)[:2] * 0.3
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    for path, end in zip(paths, ends):
        write_embeddings(path, {"<word>": end[None]})
    found = mix.between_words(tiny, paths, "a {}", [0.0, 0.5, 1.0])
    matrix = tiny.text_encoder.get_input_embeddings().weight
    rows = {kind: matrix[[tiny.words[f"<{kind}-{i}>"][0] for i in range(3)]] for kind in ("linear", "spherical")}
    for kind, half in (("linear", 0.5), ("spherical", 0.5**0.5)):
        torch.testing.assert_close(rows[kind], torch.stack([ends[0], half * (ends[0] + ends[1]), ends[1]]))
        assert torch.equal(found[f"words, {kind}"][1], tiny.encode_prompt(f"a <{kind}-1>"))
    write_embeddings(paths[1], {"<word>": torch.ones(2, 48)})
    with pytest.raises(ValueError, match="between them words need the same"):
        mix.between_words(tiny, paths, "a {}", [0.5])
