"""A full disk, a folder that cannot be written, a rename that fails: what was there stays, and one line says why."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import minti
from minti.embeddings import write_embeddings
from minti.formats.image_files import save_png
from minti.runs.checkpoints import load_checkpoint, save_checkpoint
from minti.runs.files import remove_leftovers, replacing
from minti.textual_inversion import LearnedEmbedding

NOISE = torch.rand(192, 192, 3, generator=torch.Generator().manual_seed(0))


@contextmanager
def small_files(size=16384):
    """As on a full disk, no file may grow beyond so many bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def text(path, large):
    with replacing(path) as temporary:
        temporary.write_text("x" * (60_000 if large else 10), encoding="utf-8")


def picture(path, large):
    pixels = (NOISE * 255).byte().numpy()
    save_png(Image.fromarray(pixels if large else pixels[:4]), path)


def word(path, large):
    write_embeddings(path, {"<a>": torch.ones(200 if large else 1, 128)})


def training(vectors):
    """A run that has not begun, of a word with so many embedding vectors."""
    word = minti.TrainingWrapper(minti.StableDiffusion.from_pretrained(), minti.TextualInversionConfig())
    adapter, data = LearnedEmbedding(torch.nn.Embedding(vectors, 128), range(vectors)), SimpleNamespace()
    data.pixels = torch.zeros(1, 3, 8, 8)
    word.begin(adapter, data, None, None, torch.optim.SGD(adapter.trainable(), 1), 9)
    return word


RUNS = {}


def state(path, large, step=7, keep=3):
    word = RUNS.setdefault(large, None) or training(200 if large else 1)
    RUNS[large], word.trainer.number, word.trainer.completed = word, step, step
    save_checkpoint(word, path.parent, keep)


WRITERS = {
    "table.csv": text,
    "page.png": picture,
    "learned_embeds.safetensors": word,
    "step-000007.pt": state,
}


def fails(name, folder, reason):
    """Writing more than fits over a good file fails with one line, and the good file is all there is."""
    before = (folder / name).read_bytes()
    with pytest.raises(OSError) as caught:
        WRITERS[name](folder / name, large=True)
    assert str(caught.value).startswith(f"cannot write {folder / name}: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; what was there is unchanged")
    assert "\n" not in str(caught.value)
    assert (folder / name).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow(tmp_path, name):
    WRITERS[name](tmp_path / name, large=False)
    with small_files():
        fails(name, tmp_path, "File too large")
    WRITERS[name](tmp_path / name, large=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(tmp_path, name):
    """A file system of 32 kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    if sys.platform != "linux" or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        WRITERS[name](disk / name, large=False)
        fails(name, disk, "No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("operation", ["fsync", "chmod", "replace"])
def test_an_operation_that_fails(tmp_path, monkeypatch, name, operation):
    WRITERS[name](tmp_path / name, large=False)

    def refused(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refused)
        fails(name, tmp_path, "Input/output error")
    WRITERS[name](tmp_path / name, large=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_in_place_of_the_file_and_a_file_in_place_of_the_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="Is a directory; what was there is unchanged"):
        WRITERS[name](tmp_path / name, large=False)
    assert (tmp_path / name).is_dir()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write \S+file/\S+: .+; what was there is unchanged"):
        WRITERS[name](tmp_path / "file" / name, large=False)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", name])


def test_the_older_checkpoints_outlive_a_save_that_fails(tmp_path):
    for step in range(1, 6):
        state(tmp_path / "x", False, step, keep=2)
    with small_files(), pytest.raises(OSError, match="File too large"):
        state(tmp_path / "x", True, 6, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004.pt", "step-000005.pt"]
    assert load_checkpoint(tmp_path).step == 5


def test_only_what_minti_left_is_removed(tmp_path):
    kept = {".bashrc.tmp", "a.abcdefgh.tmp", ".x.abcdefgh.tmp2", "step-000001.pt"}
    for name in [*kept, ".step-000002.pt.ab_d3fgh.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "what", "reason"),
    [
        (("small_files", 4096), "checkpoints/step-000002", "File too large"),
        (("fail_at", "fsync", "losses.csv", errno.ENOSPC), "losses.csv", "No space left on device"),
        (("fail_at", "replace", "step-000006"), "checkpoints/step-000006", "Input/output error"),
        (("fail_at", "replace", "learned_embeds"), "learned_embeds.safetensors", "Input/output error"),
        (("fail_at", "fsync", "step-000004", errno.ENOSPC), "checkpoints/step-000004", "No space left on device"),
    ],
)
def test_a_run_whose_disk_fails_can_go_on(lesson, whole, results, tmp_path, fault, what, reason):
    code, process = lesson().run(tmp_path, faults=[fault])
    assert code == 1
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith(f"error: cannot write {tmp_path / what}")
    assert reason in process.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert lesson().run(tmp_path, "--resume")[0] == 0
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
def test_folders_that_cannot_be_written(lesson, workshop, tmp_path):
    """A file in its place, or in that of the checkpoints; a folder of somebody else's: all said before the training."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/checkpoints").write_text("mine", encoding="utf-8")
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder, what, reason in (
        ("file", "", "File exists"),
        ("file/deeper", "", "Not a directory"),
        ("outputs", "/checkpoints", "File exists"),
        ("locked", "", "Permission denied"),
    ):
        faults = [("as_nobody",)] if folder == "locked" else []
        code, process = lesson().run(tmp_path / folder, faults=faults)
        assert code == 1
        assert process.stderr.count("\n") == 1
        assert process.stderr == f"error: cannot write to the output folder {tmp_path / folder}{what}: {reason}\n"
    assert (
        (tmp_path / "file").read_text(encoding="utf-8")
        == (tmp_path / "outputs/checkpoints").read_text(encoding="utf-8")
        == "mine"
    )
    assert not list((tmp_path / "locked").iterdir())


@pytest.mark.slow
def test_images_are_whole_or_not_there(workshop, tiny_folder, tmp_path):
    """The second of three images cannot be renamed; what stood there stays."""
    options = ("a toy", "--model", tiny_folder, "--steps", 1, "--num-images", 3, "--output", tmp_path)
    assert workshop.run("sample.py", *options)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, process = workshop.run("sample.py", *options, "--seed", 9, faults=[("fail_at", "replace", "00-01.png")])
    assert code == 1
    assert (
        process.stderr == f"error: cannot write {tmp_path}/00-01.png: Input/output error; what was there is unchanged\n"
    )
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"00-00.png"}


# --- permissions and links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_any_has(tmp_path, umask, mode):
    """And an old one keeps its own."""
    (tmp_path / "old.csv").touch()
    (tmp_path / "old.csv").chmod(0o640)
    former = os.umask(umask)
    try:
        for name in ("new.csv", "old.csv"):
            text(tmp_path / name, large=False)
    finally:
        os.umask(former)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new.csv", "old.csv")] == [mode, 0o640]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_words_and_models_have_the_permissions_that_any_file_has(tiny, tmp_path, umask, mode):
    """Safetensors writes files that nobody else may read."""
    former = os.umask(umask)
    try:
        write_embeddings(tmp_path / "word.safetensors", {"<a>": torch.ones(1, 48)})
        tiny.save_pretrained(tmp_path / "model")
    finally:
        os.umask(former)
    files = [tmp_path / "word.safetensors", *(path for path in (tmp_path / "model").rglob("*") if path.is_file())]
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_name_that_is_long_in_bytes(tmp_path):
    """File systems take 255 bytes, and of these characters each is three."""
    path = tmp_path / ("猫" * 80 + ".safetensors")
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(path.name, b"whole")]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/table.csv").write_text("old", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to("elsewhere/table.csv")
    text(tmp_path / "link.csv", large=False)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "elsewhere/table.csv").read_text(encoding="utf-8") == "x" * 10
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link.csv", "table.csv"]
