"""A checkpoint that is not what was written is passed over for the one before, with a warning and never a traceback."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers import learning
from safetensors.torch import save_file

import minti


@pytest.fixture(scope="module")
def two(tiny_folder, tmp_path_factory):
    """A folder with the checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("two")
    word = minti.TrainingWrapper(
        minti.StableDiffusion.from_pretrained(tiny_folder),
        minti.TextualInversionConfig(initializer_token="toy", steps=2, batch_size=1),
    )
    for _ in learning(word):
        minti.save_checkpoint(word, folder)
    return folder


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


def newest(folder):
    (path,) = folder.glob("step-000002.*")
    return path


def alike(one, other):
    """Whether two states are the same, whatever they are made of."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return alike(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


def falls_back(folder):
    with pytest.warns(UserWarning, match=r"step-000002\.\w+ is damaged \(.+\); looking for an older one") as caught:
        state = minti.load_checkpoint(folder)
    return state.step == 1 and "\n" not in str(caught[0].message)


def test_truncated(folder):
    content = newest(folder).read_bytes()
    for length in [*range(0, len(content), 211), len(content) - 1]:
        newest(folder).write_bytes(content[:length])
        assert falls_back(folder)


def test_flipped_bits(folder, two):
    """Among names, metadata and numbers: noticed, but where the file format has room that nothing depends on."""
    content, whole, noticed = newest(folder).read_bytes(), minti.load_checkpoint(two), 0
    places = range(0, len(content), 31)
    for place in places:
        newest(folder).write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = minti.load_checkpoint(folder)
        noticed += state.step == 1
        assert state.step == 1 or alike(state, whole), place
    assert noticed > 0.5 * len(places)


@pytest.mark.parametrize("content", [3, "step", None, [], {}, {"step": 2}], ids=repr)
def test_a_file_that_holds_no_state(folder, content):
    torch.save(content, newest(folder))
    assert falls_back(folder)


def test_nothing_in_a_checkpoint_is_executed(folder):
    class Payload:
        def __reduce__(self):
            return Path.touch, (folder / "executed",)

    torch.save({"step": 2, "tensors": Payload()}, newest(folder))
    assert falls_back(folder)
    assert not (folder / "executed").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_an_earlier_minti_is_refused(tmp_path):
    """Safetensors, and facts as text: not a run begun anew in silence."""
    facts = {"facts": '{"step": 2, "identity": {}, "loop": {"taken": 2, "scaler": {}}}', "sha256": "0"}
    save_file({"part.values": torch.zeros(1, 48)}, tmp_path / "step-000002.safetensors", facts)
    with pytest.raises(ValueError) as caught:
        minti.load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_all_damaged(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="every checkpoint in it is damaged"):
        minti.load_checkpoint(folder)


def test_other_files_are_no_checkpoints(folder):
    later = newest(folder).name.replace("2", "9")
    (folder / f"{later}.part").write_text("x", encoding="utf-8")
    (folder / f".{later}.abcdefgh.tmp").write_text("x", encoding="utf-8")
    (folder / later.replace("9", "3")).mkdir()
    with pytest.warns(UserWarning, match="step-000003"):
        assert minti.load_checkpoint(folder).step == 2
    assert minti.load_checkpoint(folder / "nowhere") is None
