"""What an earlier run has left in the output folder: a refused start does not touch it, another run puts it aside."""

import argparse
import shutil

import pytest
from helpers import pictures, wrapper
from PIL import Image

import minti
from minti.embeddings import read_embeddings
from minti.runs import monitor


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch, tiny_folder, tmp_path):
    """Makes a run as train.py does: a model of its own, the folder, and a validation loss after every step."""
    from support.learning import Learning

    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 1)

    def make(resume=False, **options):
        args = argparse.Namespace(resume=resume, checkpoint_every=None, validate_every=0, quiet=True)
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        return Learning(args, wrapper(model, **{"steps": 2} | options), tmp_path)

    return make


def finished(learning):
    learning.run(pictures())
    learning.save()
    return learning.folder


def test_earlier_runs_are_numbered(begun, capsys):
    """Four words in one folder: the checkpoints, tables and words of three are there under one number each."""
    names = ("<a>", "<b>", "<c>", "<d>")
    for name in names:
        folder = finished(begun(placeholder_token=name))
    for name, end in zip(names, ("-before", "-before-2", "-before-3", "")):
        assert read_embeddings(folder / f"learned_embeds{end}.safetensors").keys() == {name}
        assert minti.load_checkpoint(folder / f"checkpoints{end}").identity["placeholder_token"] == name
        assert (folder / f"losses{end}.csv").is_file()
    assert len(list(folder.iterdir())) == 3 * len(names)
    said = capsys.readouterr().out
    for end in ("-before", "-before-2", "-before-3"):
        assert f"the checkpoints of the run before are in {folder}/checkpoints{end} now (--resume" in said
        assert f"learned_embeds.safetensors of the run before is {folder}/learned_embeds{end}.safetensors now" in said


def test_what_was_put_aside_can_be_moved_back(begun, tmp_path, capsys):
    """--resume that finds nothing says where it is; moved back, the first run goes on as if there had been no other."""
    finished(begun(placeholder_token="<a>", steps=3))
    expected = (tmp_path / "losses.csv").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    finished(begun(placeholder_token="<a>"))
    finished(begun(placeholder_token="<b>"))
    aside = tmp_path / "checkpoints-before-2"  # the table alone was there to be put aside the first time
    assert aside.is_dir() and not (tmp_path / "checkpoints-before").exists()
    shutil.rmtree(tmp_path / "checkpoints")
    begun(resume=True)
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"nothing to resume in {tmp_path}/checkpoints; beginning anew (to go on with {aside}, rename it to" in said
    aside.rename(tmp_path / "checkpoints")
    (tmp_path / "losses-before-2.csv").replace(tmp_path / "losses.csv")
    finished(begun(resume=True, placeholder_token="<a>", steps=3))
    assert (tmp_path / "losses.csv").read_bytes() == expected


def test_a_resumed_run_knows_its_own_word(begun, tmp_path):
    """Its own earlier word is overwritten, another run's never, even where nothing of its own was written yet."""
    finished(begun(placeholder_token="<a>"))
    first = (tmp_path / "learned_embeds.safetensors").read_bytes()
    begun(placeholder_token="<b>").run(pictures())  # killed before it could write its word
    assert (tmp_path / "learned_embeds.safetensors").read_bytes() == first
    finished(begun(resume=True, placeholder_token="<b>"))
    assert (tmp_path / "learned_embeds-before.safetensors").read_bytes() == first
    finished(begun(resume=True, placeholder_token="<b>", steps=3))
    assert len(list(tmp_path.glob("learned_embeds*"))) == 2


@pytest.mark.parametrize(
    "options",
    [{"initializer_token": "zebra"}, {"placeholder_token": "toy"}, {"learning_rate": 1e30, "steps": 9}],
    ids=["initializer", "placeholder", "rate"],
)
def test_a_start_that_fails_moves_nothing(begun, monkeypatch, tmp_path, options):
    finished(begun())
    before = content(tmp_path)
    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 100)
    with pytest.raises((ValueError, minti.TrainingError)):
        finished(begun(**options))
    assert content(tmp_path) == before


# --- as people run it -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_refused_command_leaves_what_resume_needs(lesson, whole, results, tmp_path):
    """The wrong commands in turn, then the right one with --resume."""
    folder, empty, damaged = tmp_path / "outputs", tmp_path / "empty", tmp_path / "damaged"
    assert lesson().run(folder, faults=[("signal_at", "fsync", "step-000008", "SIGINT")])[0] == 130
    before = content(folder)
    empty.mkdir()
    damaged.mkdir()
    Image.effect_noise((64, 64), 9).save(damaged / "0.png")
    (damaged / "0.png").write_bytes((damaged / "0.png").read_bytes()[:2000])
    for options, message in (
        (("--initializer", "toy,"), "is not a single token"),
        (("--placeholder", "toy"), "in the vocabulary already"),
        (("--images", damaged), "0.png is damaged"),
        (("--learn", "lora", "--class-images", empty), "holds no image"),
        (("--learn", "word+lora", "--class-images", damaged), "0.png is damaged"),
        (("--learn", "word+lora", "--row-update", "restore"), "--row-update means nothing for --learn word+lora"),
    ):
        code, process = lesson(*options).run(folder)
        assert code in (1, 2)
        assert message in process.stderr
        assert content(folder) == before
    assert lesson().run(folder, "--resume")[0] == 0
    assert results(folder) == results(whole)


@pytest.mark.slow
def test_loras_and_models_are_put_aside(lesson, tmp_path):
    """Three runs of each kind, with all their stages."""
    shorter = ("--placeholder", "<w>", "--steps", 2, "--max-steps", 4, "--prior-weight", 0)
    for learn, names in (
        ("word+lora", ("checkpoints", "checkpoints-word", "losses.csv", "losses-word.csv", "lora.safetensors")),
        ("dreambooth", ("checkpoints", "losses.csv", "model")),
    ):
        folder = tmp_path / learn
        for seed in (1, 2, 3):
            code, process = lesson("--learn", learn, *shorter, "--seed", seed).run(folder)
            assert code == 0, process.stderr
        for end, seed in (("-before", 1), ("-before-2", 2), ("", 3)):
            assert minti.load_checkpoint(folder / f"checkpoints{end}").identity["seed"] == seed
            for name in names:
                stem, dot, kind = name.partition(".")
                assert (folder / f"{stem}{end}{dot}{kind}").exists()
