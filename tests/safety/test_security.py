"""Files of strangers run no code, and lead nowhere outside their folder; nobody asks for the network unbidden."""

import ast
import json
import os
import pickle
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin
from safetensors.torch import load_file

import minti
from minti.embeddings import read_embeddings
from minti.evaluation.clip_scores import load_clip
from minti.formats.image_files import EXTENSIONS, open_image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


# --- nothing is run ---------------------------------------------------------------------------------------------------


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def zipped(path, evil):
    torch.save({"<a>": torch.ones(1, 48), "x": evil}, path)


def legacy(path, evil):
    torch.save({"<a>": evil}, path, _use_new_zipfile_serialization=False)


def bare(path, evil):
    path.write_bytes(pickle.dumps(evil))


def tarred(path, evil):
    """The format of before 2017, whose parts torch once unpickled without restriction."""
    for name in ("sys_info", "pickle", "storages", "tensors"):
        bare(path.with_name(name), evil)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.add(path.with_name(name), name)


def scripted(path, evil):
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/data/x.pkl", pickle.dumps(evil))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [zipped, legacy, bare, tarred, scripted])
@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt"])
def test_pickles_are_refused_and_not_run(tmp_path, form, suffix):
    path, marker = tmp_path / f"word.{suffix}", tmp_path / "was-run"
    form(path, Evil(marker))
    for read in (read_embeddings, minti.StableDiffusion.from_pretrained):
        with pytest.raises(ValueError, match=f"word.{suffix} (asks to run|is no file of tensors|is damaged)"):
            read(path)
    assert not marker.exists()


# The exercise's grader runs what a learner has written: that is what it is for, and its page says it is no sandbox. Its
# tables of mistakes are text of this repository.
RUNS_TEXT = dict.fromkeys(("examples/exercise/grader/submission.py", "examples/exercise/grader/table.py"), "exec")


def test_nothing_else_unpickles_or_runs_text():
    """Of all calls in minti/ and examples/: torch.load is restricted, and the others are not there at all."""
    for path in [*(ROOT / "minti").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if called != RUNS_TEXT.get(str(path.relative_to(ROOT))):
                assert called not in ("eval", "exec", "__import__", "os.system"), (path, called)
            assert not called.endswith(("Unpickler", "unsafe_load", "pickle.load", "pickle.loads")), (path, called)
            assert "trust_remote_code" not in keywords
            if called in ("torch.load", "np.load"):
                assert ast.unparse(keywords["weights_only"]) == "True", path


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_have_code_fetched(folder, tiny, key):
    """transformers takes a repository of the hub here, and would run what is in it."""
    edit(folder / "text_encoder/config.json", **{key: "somebody/kernel"}, auto_map={"AutoModel": "evil.Model"})
    edit(folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    model = minti.StableDiffusion.from_pretrained(folder)
    assert torch.equal(model.encode_prompt("a cat"), tiny.encode_prompt("a cat"))


POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def test_an_image_cannot_start_a_program(tmp_path, monkeypatch):
    """PostScript under the name of an image: Pillow would start Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n", encoding="utf-8")
    (tmp_path / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for suffix in EXTENSIONS:
        (tmp_path / f"x{suffix}").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        )
        with pytest.raises(ValueError, match="is not an image that can be read"):
            open_image(tmp_path / f"x{suffix}")
    assert not (tmp_path / "was-run").exists()


# --- no path leaves its folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../unet/x.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors"])
def test_an_index_lists_files_beside_it_only(folder, name):
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet/x.safetensors")
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(
        json.dumps({"weight_map": {key: name for key in load_file(folder / "unet/x.safetensors")}}), encoding="utf-8"
    )
    with pytest.raises((ValueError, FileNotFoundError), match=r"is not a file beside it|is missing"):
        minti.StableDiffusion.from_pretrained(folder)


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file", "added_tokens_file"])
def test_a_tokenizer_names_files_beside_it_only(folder, tmp_path, key):
    shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere")
    for path in (str(tmp_path / "elsewhere/tokenizer.json"), "../../elsewhere/tokenizer.json"):
        edit(folder / "tokenizer/tokenizer_config.json", **{key: path})
        with pytest.raises(ValueError, match=f"tokenizer_config.json: {key} = .* is not a file beside it"):
            minti.StableDiffusion.from_pretrained(folder)
    with pytest.raises(OSError, match="is not a file beside it"):
        load_clip(str(folder / "tokenizer"))


def test_another_version_s_tokenizer_is_not_read_elsewhere(folder, tmp_path):
    """A list that transformers follows by itself, wherever it leads."""
    elsewhere = shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere")
    (elsewhere / "tokenizer.json").rename(elsewhere / "tokenizer.4.0.0.json")
    names = ["../../elsewhere/tokenizer.4.0.0.json"]
    edit(folder / "tokenizer/tokenizer_config.json", fast_tokenizer_files=names)
    with pytest.raises(ValueError, match=r"fast_tokenizer_files = .* is not a file beside it"):
        minti.StableDiffusion.from_pretrained(folder)
    edit(folder / "tokenizer/tokenizer_config.json", fast_tokenizer_files=["tokenizer.json"])
    edit(folder / "tokenizer/tokenizer_config.json", special_tokens_map_file="/home/somebody/special_tokens_map.json")
    minti.StableDiffusion.from_pretrained(folder)


def test_a_word_s_name_is_no_path(tiny, tmp_path):
    """It is written where it is said, whatever it is called, and read again under its name."""
    for name in ("../../x", "<a/b>", "/tmp/x", "..", "~/x", "C:\\x", "$HOME"):
        wrapper = minti.TrainingWrapper(
            tiny, minti.TextualInversionConfig(placeholder_token=name, initializer_token="toy")
        )
        minti.prepare_for_textual_inversion(wrapper)
        minti.save_embeddings(wrapper, tmp_path / "a/b/word.safetensors")
        assert list(read_embeddings(tmp_path / "a/b/word.safetensors")) == [name]
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a/b/word.safetensors"]


@pytest.mark.slow
def test_scripts_write_into_their_folder_and_ask_for_no_network(whole, workshop, tiny_folder, tmp_path):
    """The lesson's word is `../../<a/b>`; that of the other file, `../../y`. Any attempt to connect ends a script."""
    assert {path.name for path in whole.parents[1].iterdir()} == {"beside"}
    assert {path.name for path in whole.parent.iterdir()} == {"outputs"}
    names = {"checkpoints", "curves.png", "learned_embeds.safetensors", "losses.csv", "page.png"}
    assert {path.name for path in whole.iterdir()} == names
    torch.save({"../../y": torch.ones(1, 48)}, tmp_path / "word.pt")
    words = ("--embedding", whole / "learned_embeds.safetensors", "--embedding", tmp_path / "word.pt")
    out = tmp_path / "a/b"
    options = ("--model", tiny_folder, "--steps", 2, "--num-images", 1, "--output", out)
    code, process = workshop.run("sample.py", "a ../../<a/b> ../../y", *words, *options, faults=[("no_network",)])
    assert (code, process.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "word.pt"}
    assert {path.name for path in out.iterdir()} == {"00-00.png", "grid.png"}
    code, process = workshop.run("sample.py", "a", "--model", "some/id", "--output", out, faults=[("no_network",)])
    assert code == 99  # a hub's id, and nothing else, asks
