"""`examples/evaluate.py`: the 32 images, their scores, the report; and what it says of bad input."""

from support.charts import chart
from support.command_line import run
from support.rows import fill, plan
from support.subjects import Subject

import base64
import csv
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import minti
import world
from minti.embeddings import write_embeddings

ROOT = Path(__file__).parents[2]
NAME = next(iter(world.NAMED))
END = " in a comic book illustration"  # which the small model does not read to its end
CONCEPTS = sorted((ROOT / "examples" / "concepts").iterdir())


def call(monkeypatch, *args):
    """The script's main function in this process, with its errors as people see them."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, args), "--quiet", "--device", "cpu"])
    monkeypatch.setattr("warnings.showwarning", None)  # set by `run`, put back after the test
    run(evaluate.main)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Two files of learned words, both called <concept>: the embedding vectors of two names that the toybox knows."""
    folder = tmp_path_factory.mktemp("words")
    model = minti.StableDiffusion.from_pretrained()
    embedding = model.text_encoder.get_input_embeddings().weight
    for i, ids in enumerate(model.tokenizer([NAME, "star"], add_special_tokens=False).input_ids):
        write_embeddings(folder / f"{i}.safetensors", {"<concept>": embedding[ids[:1]].detach()})
    write_embeddings(folder / "wide.safetensors", {"<concept>": torch.zeros(1, 768)})
    return folder


class Sources(HTMLParser):
    """What a page would load, and the tags that it leaves open."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href") and tag != "a"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def check_report(path, pictures):
    """One file that needs no other, with no tag closed in the wrong order; its words in angle brackets can be seen."""
    text = path.read_text(encoding="utf-8")
    parser = Sources()
    parser.feed(text)
    assert parser.sources
    assert all(source.startswith("data:image/") for source in parser.sources if source)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert text.count("<figure>") >= pictures
    assert "&lt;one&gt;" in text
    assert "<one>" not in text


def test_two_words_from_files(monkeypatch, tmp_path, words, capsys):
    """Every file of the report, with as little drawing as can be; the numbers in words follow from the numbers."""
    pairs = [("--embedding", f"{words}/{i}.safetensors=<{name}>") for i, name in enumerate(("one", "two"))]
    pairs += [("--images", folder) for folder in CONCEPTS[:2]]
    options = ("--samples", 2, "--steps", 1, "--sampler", "ddim", "--sections", "words")
    call(monkeypatch, *(part for pair in pairs for part in pair), *options, "--output", tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"report.html", "page.png", "pictures", "grids", "scores.csv", "words.csv"}
    headings = re.findall("<h2[^>]*>(.*?)</h2>", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert headings[:2] == list(evaluate.QUESTIONS.values())
    for row in range(8):
        grid = np.asarray(Image.open(tmp_path / f"grids/{row:02}.png"))
        for i in range(2):
            own = np.asarray(Image.open(tmp_path / f"pictures/{row:02}-{i:02}.png"))
            assert np.array_equal(grid[:, i * (own.shape[1] + 2) :][:, : own.shape[1]], own)
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == [f"{row:02}-{i:02}.png" for row in range(8) for i in range(2)]
    assert Image.open(tmp_path / "page.png").height > 8 * 128
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8")))
    assert [row["prompt"].count("<one>") for row in rows] == [1, 1, 1, 0, 0, 0, 1, 1]
    assert [row["prompt"].count("<two>") for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['prompt']}: {row['in_words']}" in printed
        lost = 2 - int(row["kept_0_shape"])
        name = "<one>" if "<one>" in row["prompt"] else "<two>"
        said = re.search(rf"{name} loses its [^;]*?shape in (\d) of 2", row["in_words"])
        assert (int(said[1]) if said else 0) == lost
        assert -1 <= float(row["likeness_0"]) <= 1
    nearest = list(csv.DictReader((tmp_path / "words.csv").open(encoding="utf-8")))
    assert [row["nearest_1"] for row in nearest] == [f"{NAME} 1.000", "star 1.000"]
    check_report(tmp_path / "report.html", 8 * 2 * 2 + 10)  # drawn, with the initializer, training pictures


def test_another_model_and_its_clip(monkeypatch, tmp_path, tiny_folder, clip_folder, capsys):
    """All sections on a model that is not the toybox, measured by transformers' CLIP; a prompt is too long for it."""
    options = ["--model", tiny_folder, "--clip", clip_folder, "--samples", 2, "--steps", 1, "--sampler", "ddim"]
    for i, name in enumerate(("one", "two")):
        rows = {"<concept>": torch.randn(2, 48, generator=torch.Generator().manual_seed(i)) / 7}
        write_embeddings(tmp_path / f"{i}.safetensors", rows)
        options += ["--embedding", f"{tmp_path}/{i}.safetensors=<{name}>", "--images", CONCEPTS[i]]
    call(monkeypatch, *options, "--templates", f"a red {{}}{END}", "a {} in a {}", "--output", tmp_path / "out")
    scores = list(csv.DictReader((tmp_path / "out/scores.csv").open(encoding="utf-8")))
    assert [row["prompt"] for row in scores] == [f"a red <one>{END}", f"a red <two>{END}", "a <one> in a <two>"]
    for row in scores:
        assert float(row["obedience_ceiling"]) != float(row["obedience_floor"])
        assert re.search("<(one|two)>|whether", row["in_words"])
    assert not any(name.startswith("kept") for name in scores[0])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"attention-1.png", "attention-2.png", "guidance.csv", "together-0.png", "losses-by-timestep.csv"}
    assert "came from a file" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    rows = list(csv.DictReader((tmp_path / "out/words.csv").open(encoding="utf-8")))
    assert [row["row"] for row in rows] == ["<one>", "<one>_1", "<two>", "<two>_1"]
    check_report(tmp_path / "out/report.html", 3 * 4)


def test_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "--help")
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    for option in ("--model", "--output", "--seed", "--device", "--dtype", "--embedding", "--templates", "--samples"):
        assert option in usage


def test_everything_from_images(monkeypatch, tmp_path):
    """Both words learned on the spot, all sections, one's own templates; once more, and the images are the same."""
    options = ("--learning-steps", 21, "--samples", 1, "--steps", 2, "--sampler", "ddim")
    options += ("--images", f"{CONCEPTS[0]}=<one>", "--images", f"{CONCEPTS[1]}=<two>")
    options += ("--templates", "a sketch of a {}", "a {} next to a {}")
    call(monkeypatch, *options, "--output", tmp_path / "a")
    call(monkeypatch, *options, "--sections", "--output", tmp_path / "b")
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files >= {"report.html", "attention-1.png", "growth-1.png", "losses-by-timestep.csv", "guidance.csv"}
    assert files >= {"guidance-0.png", "attention.csv", "together.csv", "together-0.png", "word-0", "word-1"}
    assert len(list((tmp_path / "a/pictures").iterdir())) == 3
    for picture in (tmp_path / "a/pictures").iterdir():
        assert picture.read_bytes() == (tmp_path / "b/pictures" / picture.name).read_bytes()
    minti.load_embeddings(minti.StableDiffusion.from_pretrained(), tmp_path / "a/word-1/learned_embeds.safetensors")
    before = (tmp_path / "b/word-1/learned_embeds.safetensors").read_bytes()
    call(monkeypatch, *options, "--learning-steps", 1, "--sections", "--output", tmp_path / "b")
    assert (tmp_path / "b/word-1/learned_embeds-before.safetensors").read_bytes() == before
    check_report(tmp_path / "a/report.html", 20)


def test_a_locale_without_accents(tmp_path):
    """Under an ASCII locale "café" is learned, drawn and measured, and the report says it in UTF-8."""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    words = ("--concept", CONCEPTS[0].name, "--learning-steps", "2", "--templates", "a photo of a café {}")
    few = ("--samples", "1", "--steps", "1", "--sampler", "ddim", "--sections", "words", "--output", tmp_path / "é")
    command = [sys.executable, ROOT / "examples/evaluate.py", *words, *few, "--quiet"]
    done = subprocess.run(command, env=os.environ | ascii_locale, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a photo of a caf\\xe9 <first>: " in done.stdout
    assert "a photo of a café &lt;first&gt;" in (tmp_path / "é/report.html").read_text(encoding="utf-8")
    (row,) = csv.DictReader((tmp_path / "é/scores.csv").open(encoding="utf-8"))
    assert row["prompt"] == "a photo of a café <first>"


def test_one_word_and_no_clip(monkeypatch, tmp_path, words, capsys):
    """What can be done is done, and what is left out is said in a line each."""
    options = ("--embedding", f"{words}/0.safetensors=<one>", "--images", CONCEPTS[0], "--clip", tmp_path / "none")
    options += ("--samples", 1, "--steps", 1, "--sections", "--output", tmp_path / "out")
    call(monkeypatch, *options)
    warnings = capsys.readouterr().err.splitlines()
    assert any("prompts for two words need a second one; <one> is evaluated alone" in line for line in warnings)
    assert any("cannot reach the CLIP model" in line and "are left out" in line for line in warnings)
    assert len(list((tmp_path / "out/pictures").iterdir())) == 3
    assert "likeness_0" not in (tmp_path / "out/scores.csv").read_text(encoding="utf-8")
    assert "No CLIP could be reached" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_section_without_its_prompts_is_left_out(monkeypatch, tmp_path, words):
    pairs = [("--embedding", f"{words}/{i}.safetensors=<{i}>", "--images", CONCEPTS[i]) for i in range(2)]
    options = ("--samples", 1, "--steps", 1, "--sections", "guidance", "together")
    for prompt, made, left in (("a {}", "guidance-0.png", "together"), ("a {} by a {}", "together.csv", "guidance")):
        folder = tmp_path / left
        call(monkeypatch, *pairs[0], *pairs[1], *options, "--templates", prompt, "--output", folder)
        files = {path.name for path in folder.iterdir()}
        assert made in files
        assert not [name for name in files if name.startswith(left)]


def test_bad_input_gets_one_line(monkeypatch, tmp_path, words, capsys):
    (tmp_path / "empty").mkdir()
    both = ("--images", CONCEPTS[0], "--images", CONCEPTS[1])
    concept = [("--embedding", f"{words}/{name}.safetensors") for name in ("0", "1", "wide")]
    output = (tmp_path / f"out-{i}" for i in count())  # which a process keeps to itself until it ends
    for args, message in (
        ((*concept[0], *concept[1], *both), "both words are called <concept>; name one: --embedding FILE='<name>'"),
        ((*concept[2], "--images", CONCEPTS[0]), "128 numbers wide; it was learned on another model"),
        (("--templates", "a sketch"), "the template 'a sketch' has 0 {}"),
        (("--concept", CONCEPTS[0].name, "--templates", "{} by {}"), "<first> is the only word; give a second one"),
        (("--images", tmp_path / "empty"), "empty holds no image"),
        (("--images", tmp_path / "nowhere"), "nowhere: no such folder"),
        (("--initializer", "zebra"), "'zebra' is not a single token"),
        (("--embedding", tmp_path / "no.safetensors", "--images", CONCEPTS[0]), "no such file of learned words"),
    ):
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, *args, "--output", next(output))
        assert str(ended.value).startswith("error: ")
        assert message in str(ended.value)
        assert "\n" not in str(ended.value)
    for args, message in (
        (concept[0], "1 words and 0 folders of training images"),
        ((*both, "--images", CONCEPTS[2]), "one or two words can be evaluated"),
        (("--samples", "0"), "0 is not from 1 to"),
    ):
        with pytest.raises(SystemExit):
            call(monkeypatch, *args, "--output", next(output))
        assert message in capsys.readouterr().err


def test_templates_with_one_place_and_with_two():
    one, two = (Subject(f"<{name}>", "toy", Path(), []) for name in "ab")
    templates = ("a {} on a {}", "a {}")
    assert [row.prompt for row in plan(templates, [one, two])] == ["a <a>", "a <b>", "a <a> on a <b>"]
    assert [row.initial_prompt for row in plan(templates, [one, two])] == ["a toy", "a toy", "a toy on a toy"]
    assert [row.prompt for row in plan(templates, [one])] == ["a <a>"]
    assert fill("{} and {}", ["<a>"]) == "<a> and <a>"


@pytest.mark.parametrize("values", [(0.5, 0.5), (-3e-5, 2e-5), (0, 1e6)])
def test_a_chart_is_an_image_with_its_names(values):
    points = [(x, y, f"{x}") for x, y in enumerate(values, start=7)]
    shown = chart("<a_$b$> over $x", "timestep", {"<a_$b$>": points}, {"before & after": values[0]})
    svg = base64.b64decode(re.fullmatch('<img [^<>]*base64,([^"]+)" alt="[^<>]*">', shown)[1]).decode()
    ElementTree.fromstring(svg)
    for name in ("&lt;a_$b$&gt; over $x", "timestep", "&lt;a_$b$&gt;", "before &amp; after", ">7<", ">8<"):
        assert name in svg
