"""`--resume` of the training script, where there is something to go on with, nothing, something else, or damage."""

import shutil

import pytest

import minti

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stopped(lesson, tmp_path_factory):
    """An output folder of a run that Ctrl-C has ended at step 8."""
    folder = tmp_path_factory.mktemp("stopped")
    assert lesson().run(folder, faults=[("signal_at", "fsync", "step-000008", "SIGINT")])[0] == 130
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "outputs")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_to_resume_begins_anew_and_says_so(lesson, whole, results, tmp_path):
    code, process = lesson().run(tmp_path, "--resume")
    assert code == 0
    assert f"there is nothing to resume in {tmp_path}/checkpoints; beginning anew\n" in process.stdout
    assert results(tmp_path) == results(whole)


def test_without_resume_the_checkpoints_are_put_aside(lesson, whole, results, folder):
    code, process = lesson().run(folder)
    assert code == 0
    assert f"are in {folder}/checkpoints-before now (--resume would have gone on with it)" in process.stdout
    assert minti.load_checkpoint(folder / "checkpoints-before").step == 8
    assert results(folder) == results(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learning-rate", 0.5), "learning_rate was"),
        (("--concept", "blue-heart-green-side"), "images was"),
        (("--dtype", "bfloat16"), "dtype was torch.float32 and is torch.bfloat16"),
        (("--model", minti.TOYBOX), "model was"),
        (("--steps", 7), "the checkpoint is of step 8, beyond the 7 wanted"),
    ],
)
def test_another_run_is_refused_and_nothing_is_touched(lesson, folder, options, message):
    before = content(folder)
    code, process = lesson(*options).run(folder, "--resume")
    assert code == 1
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("error: the checkpoint is of ")
    assert message in process.stderr
    assert content(folder) == before


def test_a_damaged_newest_checkpoint_falls_back(lesson, whole, results, folder):
    (newest,) = folder.glob("checkpoints/step-000008.*")
    newest.write_bytes(newest.read_bytes()[:-1])
    code, process = lesson().run(folder, "--resume")
    assert code == 0
    assert process.stderr.startswith(f"warning: {newest} is damaged (")
    assert process.stderr.count("\n") == 1
    assert results(folder) == results(whole)


@pytest.mark.parametrize("text", ["", "step,loss\n1,x\n", "step,loss\n1,0.5\n", "\0", "\ufeffstep\n"])
def test_a_damaged_table_costs_the_curves_alone(lesson, whole, results, folder, text):
    (folder / "losses.csv").write_text(text, encoding="utf-8")
    code, process = lesson().run(folder, "--resume")
    assert code == 0
    assert process.stderr.startswith(f"warning: {folder}/losses.csv is damaged (")
    assert process.stderr.count("\n") == 1
    assert results(folder)[0] == results(whole)[0]
    assert results(folder)[1].endswith(results(whole)[1].split(b"\r\n", 9)[9])


def test_a_finished_run_only_samples_again(lesson, whole, results, tmp_path):
    """Even where its table is lost."""
    folder = shutil.copytree(whole, tmp_path / "outputs")
    (folder / "page.png").unlink()
    (folder / "losses.csv").write_text("", encoding="utf-8")
    code, process = lesson().run(folder, "--resume")
    assert code == 0
    assert "in 12 steps; validation loss" in process.stdout
    assert "at step 12 (initializer" in process.stdout
    assert results(folder)[0::2] == results(whole)[0::2]


def test_more_steps(lesson, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "outputs")
    code, process = lesson("--steps", 14).run(folder, "--resume")
    assert code == 0
    assert "in 14 steps" in process.stdout
    assert (folder / "losses.csv").read_bytes().startswith((whole / "losses.csv").read_bytes())
