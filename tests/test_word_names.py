"""Words whose names begin alike, and the tokens that a failure must not leave behind."""

import pytest
import torch
from helpers import ids_of, pictures, seeded, wrapper
from safetensors.torch import save_file

import minti
from minti.embeddings import write_embeddings
from minti.text import token_ids


def add(model, word, vectors=1):
    return model.add_word(word, torch.ones(vectors, 48))


@pytest.mark.parametrize("order", [("<cat>", "<cat>s"), ("<cat>s", "<cat>")])
def test_a_word_that_begins_with_another(tiny, order):
    ids = {word: add(tiny, word, 2 if word == "<cat>" else 1) for word in order}
    comma = tiny.tokenizer.convert_tokens_to_ids(",</w>")
    found = token_ids("<CAT>s, <cat> <cat>s", tiny.tokenizer, tiny.words)
    assert found == [*ids["<cat>s"], comma, *ids["<cat>"], *ids["<cat>s"]]
    (found,) = tiny.tokenize(["<cat>s <cat>"]).tolist()
    assert found[1:4] == [*ids["<cat>s"], *ids["<cat>"]]


@pytest.mark.parametrize("order", [("<cat>", "<cat>_1"), ("<cat>_1", "<cat>")])
def test_a_word_that_is_called_like_another_one_s_second_vector(tiny, order):
    ids = {word: add(tiny, word) for word in order}
    for prompt, expected in (("a <cat>", "<cat>"), ("a <cat>_1", "<cat>_1")):
        added = [i for i in tiny.tokenize([prompt])[0].tolist() if i in (*ids["<cat>"], *ids["<cat>_1"])]
        assert added == ids[expected]


def test_one_vector_of_several_can_be_named_alone(tiny):
    ids = add(tiny, "<cat>", 3)
    (found,) = tiny.tokenize(["a <cat>_1"]).tolist()
    assert found[2:4] == [ids[1], tiny.tokenizer.eos_token_id]
    (found,) = tiny.tokenize(["<cat>a <cat>"]).tolist()  # with and without a space behind it
    assert found[1:8] == [*ids, tiny.tokenizer.convert_tokens_to_ids("a</w>"), *ids]


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_a_prepare_that_fails_leaves_no_token(tiny):
    """The mended call works."""
    before = len(tiny.tokenizer)
    for _ in range(2):
        with pytest.raises(ValueError, match="does not contain all 80 vectors of <concept>"):
            minti.prepare_for_textual_inversion(wrapper(tiny, num_vectors=80))
        assert len(tiny.tokenizer) == before == len(tiny.text_encoder.get_input_embeddings().weight)
    w = wrapper(tiny, num_vectors=2, steps=1)
    for _ in minti.textual_inversion(w, pictures()):
        pass
    assert ids_of(w) == [before, before + 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<w>": torch.zeros(0, 48)}, "expected its embedding vectors"),
        ({"<w>": torch.full((1, 48), torch.nan)}, "not finite"),
        ({"<w>": torch.full((2, 48), torch.inf)}, "not finite"),
        ({"<good>": torch.zeros(1, 48), "<w>": torch.zeros(1, 47)}, "48 numbers wide"),
        ({"<good>": torch.zeros(1, 48), "cat": torch.zeros(1, 48)}, "in the vocabulary already"),
        ({"<w>": torch.zeros(1, 48), "<W>": torch.zeros(1, 48)}, "the same but for their case"),
        ({"<w>": torch.zeros(2, 48), "<w>_1": torch.zeros(1, 48)}, "the same"),
        ({"<w>": torch.zeros(15, 48)}, "more than a prompt can hold"),
    ],
)
def test_a_file_that_cannot_be_loaded_leaves_no_token(tiny, tmp_path, content, message):
    before, path = len(tiny.tokenizer), tmp_path / "word.safetensors"
    save_file(content, path)
    with pytest.raises(ValueError, match=message) as error:
        minti.load_embeddings(tiny, path)
    assert str(path) in str(error.value)
    assert len(tiny.tokenizer) == before == len(tiny.text_encoder.get_input_embeddings().weight)


def test_names_with_spaces_or_of_a_known_word_get_another(tiny, tmp_path):
    """AUTOMATIC1111 calls a word as its file."""
    rows = torch.randn(2, 48, generator=seeded())
    save_file({"emb_params": rows}, tmp_path / "my  cat.safetensors")
    with pytest.warns(UserWarning, match=r"my  cat.safetensors: the word 'my  cat' is called my-cat"):
        assert minti.load_embeddings(tiny, tmp_path / "my  cat.safetensors") == ["my-cat"]
    assert tiny.tokenize("a my-cat")[0, 2:4].tolist() == tiny.words["my-cat"]
    for name in ("your cat", "cat"):
        save_file({"emb_params": rows}, tmp_path / f"{name}.safetensors")
        if name == "cat":
            with pytest.raises(ValueError, match=r"'cat' is in the vocabulary.*load it"):
                minti.load_embeddings(tiny, tmp_path / f"{name}.safetensors")
        word = f"<{len(name)}>"
        assert minti.load_embeddings(tiny, tmp_path / f"{name}.safetensors", word) == [word]
        assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[-2:], rows)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".pt", ""])
def test_only_what_minti_reads_is_written(tmp_path, suffix):
    path = tmp_path / f"word{suffix}"
    with pytest.raises(ValueError, match="safetensors only"):
        write_embeddings(path, {"<w>": torch.zeros(1, 48)})
    assert not path.exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_written(tmp_path, value):
    path = tmp_path / "word.safetensors"
    write_embeddings(path, {"<w>": torch.ones(1, 48)})
    good, spoilt = path.read_bytes(), torch.ones(2, 48)
    spoilt[1, 7] = value
    with pytest.raises(ValueError, match="is not written: <w> is not finite"):
        write_embeddings(path, {"<w>": spoilt})
    assert path.read_bytes() == good


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    """Who has the former file still reads the former one: it was not opened again, its name was given to another."""
    path, second_name = tmp_path / "word.safetensors", tmp_path / "other.safetensors"
    write_embeddings(path, {"<w>": torch.ones(1, 48)})
    former = path.read_bytes()
    second_name.hardlink_to(path)
    with path.open("rb") as reader:
        write_embeddings(path, {"<w>": torch.zeros(3, 48)})
        assert reader.read() == former
    assert second_name.read_bytes() == former
    assert path.read_bytes() != former
    assert sorted(tmp_path.iterdir()) == sorted([path, second_name])
