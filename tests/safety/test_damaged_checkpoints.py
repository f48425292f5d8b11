"""A checkpoint that is not what was written is passed over for the one before, with a warning and never a traceback."""

import json
import shutil

import pytest
import torch
from helpers import pictures
from minti.learning.run_state import checksum
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minti
from minti.runs.checkpoints import Checkpoint, resumed
from minti.textual_inversion import begin


@pytest.fixture(scope="module")
def two(tiny_folder, tmp_path_factory):
    """A folder with the checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("two")
    word = minti.TrainingWrapper(
        minti.StableDiffusion.from_pretrained(tiny_folder), minti.TextualInversionConfig(steps=2, batch_size=1)
    )
    for _ in minti.textual_inversion(word, pictures()):
        minti.save_checkpoint(word, folder)
    return folder


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


def newest(folder):
    return folder / "step-000002.safetensors"


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def falls_back(folder):
    with pytest.warns(UserWarning, match=r"step-000002.safetensors is damaged \(.+\); looking for an older one"):
        return minti.load_checkpoint(folder).step == 1


def test_truncated(folder):
    content = newest(folder).read_bytes()
    for length in [*range(0, len(content), 211), len(content) - 1]:
        newest(folder).write_bytes(content[:length])
        assert falls_back(folder)


def test_flipped_bits(folder):
    """In the header, in the facts and in the numbers, of which safetensors itself keeps no checksum."""
    content = newest(folder).read_bytes()
    for place in range(0, len(content), 31):
        newest(folder).write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert falls_back(folder), place


@pytest.mark.parametrize(
    "facts",
    [None, "", "{", "[]", "3", "null", '"step"', "{}", '{"step": "two"}', '{"step": 1e999}', "[" * 100_000],
    ids=lambda facts: str(facts)[:16],
)
@pytest.mark.parametrize("signed", [False, True])
def test_facts_that_are_none(folder, facts, signed):
    """Also if the checksum fits them."""
    tensors = load_file(newest(folder))
    about = {"sha256": checksum(tensors, facts or "")} if signed else {}
    save_file(tensors, newest(folder), about | ({} if facts is None else {"facts": facts}))
    assert falls_back(folder)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype", "none"])
def test_tensors_that_are_not_those_written(folder, change):
    tensors, about = load_file(newest(folder)), metadata(newest(folder))
    rows = tensors.pop("part.values")
    changed = {
        "missing": {},
        "more": {"part.values": rows, "row": rows.clone()},
        "shape": {"part.values": rows.repeat(2, 1)},
        "dtype": {"part.values": rows.double()},
    }
    save_file(tensors | changed[change] if change != "none" else {}, newest(folder), about)
    assert falls_back(folder)


@pytest.fixture(scope="module")
def word(tiny_folder):
    config = minti.TextualInversionConfig(steps=2, batch_size=1)
    word = minti.TrainingWrapper(minti.StableDiffusion.from_pretrained(tiny_folder), config)
    begin(word, pictures())
    return word


def refused(word, step, tensors, facts):
    with pytest.raises(ValueError, match="the checkpoint of step 2 is no whole state of a run: ") as caught:
        resumed(word, Checkpoint(step, tensors, facts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["part.values", "best.values", "generator", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"]
)
@pytest.mark.parametrize("change", [None, lambda t: t[..., :-1], lambda t: t.float() * torch.nan, lambda t: t[0, :0]])
def test_tensors_that_do_not_fit_are_refused(word, two, name, change):
    """With a checksum that fits: it says that this was written, not that it is a run's."""
    state = minti.load_checkpoint(two)
    tensors = dict(state.tensors)
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor if name != "generator" else tensor[None])
    refused(word, state.step, tensors, state.facts)


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_the_optimizer_s_numbers_are_there_from_the_first_step_on(word, folder, name):
    newest(folder).unlink()
    state = minti.load_checkpoint(folder)
    tensors = {key: value for key, value in state.tensors.items() if key != f"optimizer.0.{name}"}
    with pytest.raises(ValueError, match=f"the checkpoint of step 1 .*'optimizer.0.{name}' is missing"):
        resumed(word, Checkpoint(1, tensors, state.facts))
    resumed(word, state)


@pytest.mark.parametrize(
    ("key", "value"),
    [("identity", None), ("identity", 3), ("loop", "x"), ("loop", None), ("loop", {}), ("loop", {"taken": 1})]
    + [("loop", {"taken": value, "scaler": {}}) for value in (-1, 1, 3, "2", None)]
    + [("watcher", value) for value in (None, [], {"losses": 1, "empty_loss": 2, "best_step": 3}, {"losses": []})],
)
def test_facts_that_do_not_fit_are_refused(word, two, key, value):
    state = minti.load_checkpoint(two)
    refused(word, state.step, state.tensors, state.facts | {key: value})
    refused(word, state.step, state.tensors, {k: v for k, v in state.facts.items() if k != key})
    resumed(word, state)


def test_a_checkpoint_of_an_earlier_minti_is_refused(folder):
    """Format 1 had no number, and other names."""
    tensors = load_file(newest(folder))
    facts = json.loads(metadata(newest(folder))["facts"])
    assert facts.pop("format") == 2
    written = json.dumps(facts)
    save_file(tensors, newest(folder), {"facts": written, "sha256": checksum(tensors, written)})
    with pytest.raises(ValueError, match=r"step-000002\.safetensors was written by another version of minti"):
        minti.load_checkpoint(folder)


def test_all_damaged(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="every checkpoint in it is damaged"):
        minti.load_checkpoint(folder)


def test_other_files_are_no_checkpoints(folder):
    (folder / "step-000009.safetensors.part").write_text("x")
    (folder / ".step-000009.safetensors.abcdefgh.tmp").write_text("x")
    (folder / "step-000003.safetensors").mkdir()
    with pytest.warns(UserWarning, match="step-000003"):
        assert minti.load_checkpoint(folder).step == 2
    assert minti.load_checkpoint(folder / "nowhere") is None
    assert json.loads(metadata(newest(folder))["facts"])["step"] == 2
