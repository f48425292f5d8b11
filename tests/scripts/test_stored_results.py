"""Results that pages store: the commands named beside them are run again, and what they print is compared.

Nothing here says what is right; that the pages are of today's code is the claim that is tested.
"""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import script

import minti
from compare_samplers import flow_error
from minti.evaluation.clip_scores import among_themselves
from minti.formats.image_files import open_folder
from toy_clip import load_toy_clip

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


def page(name):
    return (EXAMPLES / name).read_text(encoding="utf-8")


def row(name, beginning, after=""):
    """The cells of the first row of a table that begins so, below the first place that says `after`."""
    text = page(name)
    rows = [line for line in text[text.index(after) :].splitlines() if line.startswith(f"| {beginning}")]
    return [cell.strip() for cell in rows[0].strip("|").split(" | ")]


def same(stored, values):
    """Numbers as they are printed, within one of their last digit."""
    found = NUMBER.findall(stored)
    assert len(found) == len(values), (stored, values)
    for text, value in zip(found, values):
        assert abs(float(text) - float(value)) <= 1.01 * 10.0 ** -len(text.partition(".")[2]), (stored, values)


def read(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_the_evaluation_of_two_words(tmp_path):
    """evaluate.md, by its command: steps, scores, what the judge says, the vectors' lengths, guidance and attention."""
    sections = ("--sections", "words", "guidance", "attention")
    printed = script("evaluate.py", "--output", tmp_path, "--quiet", *sections).stdout
    text = page("evaluate.md")
    steps = re.search(r"learned in (\d+) steps, `<second>` is\s+`[\w-]+`, in (\d+)", text)
    assert list(steps.groups()) == re.findall(r"images in (\d+) steps", printed)
    for scores in read(tmp_path / "scores.csv"):
        _, likeness, obedience, in_words = row("evaluate.md", scores["prompt"] + " |")
        ends = ("", "_floor", "_ceiling")
        names = [f"likeness_{i}{end}" for i in (0, 1) for end in ends if scores.get(f"likeness_{i}")]
        same(likeness, [scores[name] for name in names])
        same(obedience, [scores[f"obedience{end}"] for end in ends])
        assert in_words == scores["in_words"]
    lengths = re.search(r"norms of their embedding vectors are [\d.]+ and [\d.]+\d", text)[0]
    same(lengths, [word["length"] for word in read(tmp_path / "words.csv")])
    shares = {(line["learned_word"], line["of"]): float(line["share"]) for line in read(tmp_path / "attention.csv")}
    learned = [part for word in ("<first>", "<second>") for part in (shares[word, word], shares[word, "chance"])]
    same(" ".join(row("evaluate.md", "the learned word |")[1::2]), learned[::2])
    guided = {(line["word"], float(line["scale"])): line for line in read(tmp_path / "guidance.csv")}
    ends = [float(guided["<first>", scale]["likeness"]) for scale in (1, 5, 15)]
    stored = re.search(
        r"of `<first>` in the first\s+prompt rises from ([\d.]+)\s+to ([\d.]+) at .* to ([\d.]+), and", text
    )
    same(" ".join(stored.groups()), ends)


def test_the_image_of_the_readme(tmp_path, monkeypatch):
    """examples/first_word.png, by first_word.py: to a grey level on average, as other kernels round otherwise."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    script("first_word.py")
    paths = (tmp_path / "outputs/first_word/gem.png", EXAMPLES / "first_word.png")
    made, stored = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in paths)
    assert np.abs(made - stored).mean() < 1


def test_the_energies_of_two_images(tmp_path):
    """questions.md, 1 a and 1 b."""
    printed = script("energies.py", "--output", tmp_path).stdout
    rows = {"'a red star'": 'with the prompt "a red', "'a blue moon'": 'with "a blue', "''": "without a prompt"}
    for prompt, beginning in rows.items():
        values = re.search(rf"under {prompt}: (\S+); by a detour (\S+)", printed).groups()
        same(" ".join(row("questions.md", beginning)[1:]), values)
    for told, beginning in (("the noised image", "the noisy image"), ("  with noise", "Langevin dynamics with its")):
        values = re.search(rf"{told}: (\S+), variance (\S+)", printed).groups()
        same(" ".join(row("questions.md", beginning)[1:3]), values)


def test_what_guidance_costs(tmp_path):
    """toybox/README.md: evaluations, and how far the images are from the exact ones; seconds are another machine's."""
    printed = script("toybox/evaluate_toybox.py", "--only", "guidance", "--quiet", "--output", tmp_path).stdout
    found = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| .* \| \d+ \|", line)]
    for way in (
        "one unconditional trajectory",
        "the same, noisier half",
        "the noisier half only",
        "none",
        "first step",
    ):
        (values,) = (cells for cells in found if cells[0].startswith(way))
        _, evaluations, _, deviation = row("toybox/README.md", way, after="| guidance, 8 prompts, 50 steps |")
        assert evaluations == values[1]
        same(deviation, [values[3]])


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "pndm", "dpm-solver++"])
def test_the_errors_where_the_flow_is_known(sampler):
    cells = row("steering/tables.md", sampler, after="| linear schedule |")[1:]
    same(" ".join(cells), [flow_error(sampler, steps, "linear") for steps in (5, 10, 20, 50, 100)])


@pytest.mark.fast
def test_the_parameters_of_the_toybox():
    """Of UNet, VAE and text encoder, and of all three, in the README."""
    model = minti.StableDiffusion.from_pretrained()
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.vae, model.text_encoder, model.unet)]
    sentence = r"The VAE has (\S+) million parameters, the text encoder (\S+) .*?UNet (\S+)\.\s"
    stored = re.search(sentence, page("toybox/README.md"), re.DOTALL)
    same(" ".join(stored.groups()), millions)
    same(re.search(r"\*\*toybox\*\*: (\S+) million parameters", page("../README.md"))[1], [sum(millions)])


@pytest.mark.fast
def test_the_training_images_among_themselves():
    """The ceilings of evaluate.md's image alignment."""
    model = minti.StableDiffusion.from_pretrained()
    clip = load_toy_clip(model, minti.TOYBOX)
    for word, name in (("<first>", "red-diamond-pink-belt"), ("<second>", "white-square-red-half")):
        found = among_themselves(clip.images(open_folder(EXAMPLES / "concepts" / name)))
        same(row("evaluate.md", f"a black and white photo of a {word}")[1].rpartition(", ")[2], [found])
