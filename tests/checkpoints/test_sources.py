"""What `from_pretrained` is asked for: a file that is missing, and options that do not apply to what it opens."""

import huggingface_hub
import pytest

import minti


@pytest.fixture
def no_hub(monkeypatch):
    """Fails where anything is looked for on the hub."""

    def download(*args, **options):
        raise AssertionError(f"the hub was asked for {args}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize("name", ["sd-v1-4.ckpt", "sd-v1-4.safetensors", "model.pt", "model.bin"])
@pytest.mark.parametrize("options", [{}, {"ema": True}, {"variant": "fp16"}], ids=str)
def test_a_missing_file_is_not_looked_for_on_the_hub(no_hub, tmp_path, monkeypatch, name, options):
    """`models/NAME` might be an id, but no id ends as a file of weights does."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"models/{name}: no such file"):
        minti.StableDiffusion.from_pretrained(f"models/{name}", **options)


@pytest.mark.parametrize("option", [{"ema": True}, {"revision": "main"}, {"tokenizer": "elsewhere"}], ids=str)
def test_options_that_do_not_apply_to_a_folder_are_refused(no_hub, tiny_folder, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} does not apply to .*, which is a folder; leave it out") as caught:
        minti.StableDiffusion.from_pretrained(tiny_folder, **option)
    assert str(tiny_folder) in str(caught.value)


@pytest.mark.parametrize("option", [{"variant": "fp16"}, {"revision": "main"}], ids=str)
def test_options_that_do_not_apply_to_a_single_file_are_refused(no_hub, tmp_path, option):
    """Before anything of it is read."""
    (name,) = option
    (tmp_path / "model.ckpt").write_bytes(b"not read")
    with pytest.raises(ValueError, match=f"{name} does not apply to .*, which is a single file; leave it out"):
        minti.StableDiffusion.from_pretrained(tmp_path / "model.ckpt", **option)


@pytest.mark.parametrize("option", [{"ema": True}, {"tokenizer": "elsewhere"}], ids=str)
def test_options_that_do_not_apply_to_a_hub_id_are_refused(no_hub, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} does not apply to someone/some-model, which is a hub id"):
        minti.StableDiffusion.from_pretrained("someone/some-model", **option)


def test_an_unknown_option_is_refused(no_hub, tiny_folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'varient'"):
        minti.StableDiffusion.from_pretrained(tiny_folder, varient="fp16")
