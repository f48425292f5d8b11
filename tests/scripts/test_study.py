"""The study runner: samples do not depend on the batch size, tables have the right statistics, rows are kept."""

from study import Study, cell, mean_and_error, of, options, report, sample

import argparse
import csv
import math
import sys

import pytest
import torch
from PIL import Image

import minti

PROMPTS = ["a red star", "a blue heart", "a green moon"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", "--output", str(tmp_path), "--quiet", "--count", "3"])
    return Study(options("A study.\n\nMore.", "outputs/study", ways=("a", "b"), count=8, steps=(2, 2)))


def test_an_image_is_the_same_in_every_batch():
    model = minti.StableDiffusion.from_pretrained()
    how = {"num_inference_steps": 2, "sampler": "ddim"}
    whole, parts = (sample(model, PROMPTS, 5, size, **how) for size in (3, 2))
    assert whole.shape == (3, 3, 64, 64)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)
    alone = sample(model, PROMPTS[2:], 7, **how)
    torch.testing.assert_close(whole[2:], alone, rtol=1e-3, atol=1e-3)


def test_each_batch_is_asked_for_its_own_options():
    model, asked = minti.StableDiffusion.from_pretrained(), []
    sample(model, PROMPTS, batch_size=2, each=lambda some: asked.append(PROMPTS[some]) or {"num_inference_steps": 1})
    assert asked == [PROMPTS[:2], PROMPTS[2:]]


def test_options_and_defaults(study):
    assert (study.args.count, study.args.steps, study.args.ways) == (3, 2, ["a", "b"])
    assert study.args.guidance_scale == study.model.defaults.guidance_scale
    networks = (study.model.unet, study.model.vae, study.model.text_encoder)
    assert not any(weight.requires_grad for network in networks for weight in network.parameters())


@pytest.mark.parametrize("wrong", [("--ways", "c"), ("--count", "0"), ("--steps", "1")])
def test_bad_options_are_one_line(wrong, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", *wrong])
    parser = options("A study.", "outputs/study", ways=("a", "b"), count=8, steps=(2, 2))
    assert isinstance(parser, argparse.ArgumentParser)
    with pytest.raises(SystemExit):
        parser.parse_args()
    said = capsys.readouterr().err
    assert wrong[0] in said and said.count("\n") == 1


def test_rows_are_printed_and_kept(study, capsys):
    """Also those before one that fails."""

    def rows():
        yield {"way": "a", "right": 0.25}
        yield [{"way": "b", "right": 1.0}, {"way": "c"}]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        study.table("x", rows(), {"way": "", "right": ".0%"})
    assert capsys.readouterr().out.splitlines() == [
        "| way | right |",
        "|---|---|",
        "| a | 25 |",
        "| b | 100 |",
        "| c |  |",
    ]
    kept = list(csv.DictReader((study.folder / "x.csv").open(encoding="utf-8")))
    assert [row["way"] for row in kept] == ["a", "b", "c"] and kept[0]["right"] == "0.25"
    before = (study.folder / "x.csv").read_bytes()
    study.table("x", [{"way": "d"}])
    assert (study.folder / "x-before.csv").read_bytes() == before


def test_a_page_grows(study):
    heights = []
    for label in ("one", "two"):
        study.show("page", label, torch.zeros(2, 3, 64, 64))
        heights.append(Image.open(study.folder / "page.png").height)
    assert heights[1] > heights[0] >= 64


def test_cells():
    assert [cell(0.5, ".0%"), cell((0.5, 0.125), ".1%"), cell(2.5, ".2f")] == ["50", "50.0 ± 12.5", "2.50"]
    assert [cell(None, ".1f"), cell("a way"), cell(True), cell(12)] == ["", "a way", "True", "12"]


def test_statistics_by_way():
    """Of 1, 1, 0, 0: mean 1/2, variance 1/3 with n - 1, so the standard error is sqrt(1/12)."""
    mean, error = mean_and_error([1, 1, 0, 0])
    assert mean == 0.5 and error == pytest.approx(1 / 12**0.5)
    assert math.isnan(mean_and_error([1])[1])
    rows = [{"way": way, "x": x, "seed": seed} for way, x, seed in (("a", 1, 0), ("b", 5, 0), ("a", 4, 1))]
    columns = {"mean": (".1f", of("x")), "first": ("", of("x", max, seed=0)), "n": ("", len)}
    assert report(rows, "way", columns).splitlines()[2:] == ["| a | 2.5 | 1 | 2 |", "| b | 5.0 | 5 | 1 |"]
