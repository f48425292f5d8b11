"""Learned words to and from files, those of other programs too."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import minti
from minti import embeddings
from minti.embeddings import write_embeddings
from minti.personalization.removal import remove_word


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_samples_the_same_image_with_a_learned_word(tiny, pipeline, tmp_path, vectors):
    rows = torch.randn(vectors, 48, generator=torch.Generator().manual_seed(0))
    write_embeddings(tmp_path / "word.safetensors", {"<word>": rows})
    assert minti.load_embeddings(tiny, tmp_path / "word.safetensors") == ["<word>"]
    pipeline.load_textual_inversion(tmp_path, weight_name="word.safetensors")
    expected, got = (
        draw(generator=torch.Generator().manual_seed(1), num_inference_steps=3)
        for draw in (
            lambda **o: pipeline("a <word> photo", **o).images[0],
            lambda **o: minti.sample(tiny, "a <word> photo", **o)[0],
        )
    )
    assert got.tobytes() == expected.tobytes()


def test_bad_embedding_files(tiny, tmp_path):
    path = tmp_path / "word.safetensors"
    write_embeddings(path, {"<word>": torch.zeros(1, 1024)})
    with pytest.raises(ValueError, match="48 numbers wide"):
        minti.load_embeddings(tiny, path)
    write_embeddings(path, {"cat": torch.zeros(1, 48)})
    with pytest.raises(ValueError, match="in the vocabulary already"):
        minti.load_embeddings(tiny, path)
    path.write_bytes(pickle.dumps({"<word>": [1, 2]}))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        minti.load_embeddings(tiny, path)
    with pytest.raises(FileNotFoundError):
        minti.load_embeddings(tiny, tmp_path / "none.safetensors")


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "word.safetensors"
    write_embeddings(path, {"<word>": torch.ones(1, 4)})

    def full_disk(tensors, file):
        with open(file, "wb") as handle:
            handle.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(embeddings, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_embeddings(path, {"<word>": torch.zeros(1, 4)})
    assert torch.equal(embeddings.read_embeddings(path)["<word>"], torch.ones(1, 4))
    assert [p.name for p in tmp_path.iterdir()] == ["word.safetensors"]


def test_tokens_of_a_loaded_word_are_the_last(tiny, tmp_path):
    write_embeddings(tmp_path / "a.safetensors", {"<a>": torch.ones(2, 48)})
    minti.load_embeddings(tiny, tmp_path / "a.safetensors")
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[-2:], torch.ones(2, 48))


def write_word(path: Path, rows: torch.Tensor, form: str) -> None:
    if form == "diffusers bin":
        torch.save({"<word>": rows}, path)
    elif form == "a1111 pt":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "<word>", "step": 500}
        torch.save(content | {"sd_checkpoint": None, "sd_checkpoint_name": None}, path)
    elif form == "a1111 safetensors":
        save_file({"emb_params": rows}, path)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("diffusers bin", "learned_embeds.bin"),
        ("a1111 pt", "<word>.pt"),
        ("a1111 safetensors", "<word>.safetensors"),
    ],
)
@pytest.mark.parametrize("vectors", [1, 2])
def test_words_of_other_programs(tiny, pipeline, tmp_path, form, name, vectors):
    """AUTOMATIC1111's files and diffusers' .bin load, and sample what diffusers samples with the same file."""
    rows = torch.randn(vectors, 48, generator=torch.Generator().manual_seed(0))
    write_word(tmp_path / name, rows, form)
    assert minti.load_embeddings(tiny, tmp_path / name) == ["<word>"]
    pipeline.load_textual_inversion(tmp_path / name, token="<word>")
    options = {"num_inference_steps": 3}
    expected = pipeline("a <word> photo", generator=torch.Generator().manual_seed(1), **options).images[0]
    got = minti.sample(tiny, "a <word> photo", generator=torch.Generator().manual_seed(1), **options)[0]
    assert got.tobytes() == expected.tobytes()


def test_a_folder_is_no_file(tiny, tmp_path):
    write_embeddings(tmp_path / "learned_embeds.safetensors", {"<a>": torch.ones(2, 48)})
    for load in (minti.load_embeddings, minti.load_lora):
        with pytest.raises(
            OSError, match=r"(is a folder; name the file in it \(learned_embeds|no such file of a LoRA)"
        ):
            load(tiny, tmp_path)


def test_vectors_of_another_width_leave_no_word(tiny):
    before = len(tiny.tokenizer)
    with pytest.raises(RuntimeError):
        tiny.add_word("<bad>", torch.ones(1, 47))
    ids = tiny.add_word("<good>", torch.full((1, 48), 3.0))
    assert ids == [before]
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[ids], torch.full((1, 48), 3.0))


def test_adding_and_removing_a_word_draws_no_global_random_number(tiny):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    tiny.add_word("<a>", torch.ones(2, 48))
    remove_word(tiny, "<a>")
    assert torch.equal(torch.rand(3), expected)


def test_words_that_do_not_fit(tiny, tmp_path):
    named = ((1024, "SD 2", "a1111 pt", "<two>.pt"), (1280, "SDXL", "a1111 safetensors", "<xl>.safetensors"))
    for width, model, form, name in named:
        write_word(tmp_path / name, torch.zeros(1, width), form)
        with pytest.raises(ValueError, match=rf"{width}\).*48 numbers wide; .* on another model, {model} by its width"):
            minti.load_embeddings(tiny, tmp_path / name)
    save_file({"clip_l": torch.zeros(1, 48), "clip_g": torch.zeros(1, 1280)}, tmp_path / "xl.safetensors")
    with pytest.raises(ValueError, match=r"xl.safetensors: clip_l and clip_g are of SDXL"):
        minti.load_embeddings(tiny, tmp_path / "xl.safetensors")
    torch.save({"step": 3}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no learned words"):
        minti.load_embeddings(tiny, tmp_path / "none.pt")


def test_a_word_can_be_given_another_name(tiny, tmp_path):
    save_file({"emb_params": torch.ones(1, 48)}, tmp_path / "cat.safetensors")
    with pytest.raises(ValueError, match="in the vocabulary already"):
        minti.load_embeddings(tiny, tmp_path / "cat.safetensors")
    assert minti.load_embeddings(tiny, tmp_path / "cat.safetensors", placeholder="<my-cat>") == ["<my-cat>"]
    assert tiny.tokenizer.convert_tokens_to_ids("<my-cat>") == len(tiny.tokenizer) - 1
