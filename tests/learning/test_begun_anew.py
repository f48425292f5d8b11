"""A word that was learned here can be learned anew, as when a notebook's cell runs twice; and words can be removed."""

import pytest
import torch
from helpers import ids_of, learning, pictures, train, wrapper

import minti
from minti.embeddings import read_embeddings, write_embeddings
from minti.personalization.removal import remove_word


def matrix(model):
    return model.text_encoder.get_input_embeddings().weight


def same_vocabulary(model, other):
    """Whether both models have the same words, in tokenizer and matrix."""
    assert model.words == other.words
    assert model.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return torch.equal(matrix(model), matrix(other))


@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_a_cell_that_runs_twice(tiny, tiny_folder, capsys, form):
    """Also after a first run that was left alone before its end, and with other settings."""
    once = minti.StableDiffusion.from_pretrained(tiny_folder)
    train(once, row_update=form, steps=2, num_vectors=2)
    first = learning(wrapper(tiny, row_update=form, steps=1))
    assert next(first).finished  # evaluated, and not yet ended
    assert capsys.readouterr().out == ""
    train(tiny, row_update=form, steps=2, num_vectors=2)
    assert capsys.readouterr().out == "<concept> was learned in this model before; it begins anew\n"
    first.close()
    assert same_vocabulary(tiny, once)


def test_a_second_run_that_is_refused_leaves_the_word(tiny, tiny_folder):
    train(tiny, steps=2)
    once = minti.StableDiffusion.from_pretrained(tiny_folder)
    w, _ = train(once, steps=2)
    for options in ({"initializer_token": "zebra"}, {"templates": ("a " * 14 + "{}",)}, {"num_vectors": 14}):
        with pytest.raises(ValueError):
            train(tiny, **options)
        assert same_vocabulary(tiny, once)
    train(tiny, placeholder_token="<other>", steps=1)
    with pytest.raises(ValueError, match="<other> was added behind it") as caught:
        train(tiny)
    assert "\n" not in str(caught.value)
    assert torch.equal(matrix(tiny)[ids_of(w)], w.embedding.values)


def test_a_loaded_word_is_refused(tiny, tmp_path):
    write_embeddings(tmp_path / "word.safetensors", {"<concept>": torch.ones(1, 48)})
    minti.load_embeddings(tiny, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match="in the vocabulary already"):
        train(tiny)
    assert torch.equal(matrix(tiny)[tiny.words["<concept>"]], torch.ones(1, 48))


def test_a_removed_word_is_gone_and_the_others_stay(tiny, tiny_folder, tmp_path):
    size = len(tiny.tokenizer)
    first = learning(wrapper(tiny, placeholder_token="<a>", num_vectors=2, steps=1))
    assert next(first).finished  # evaluated, and not yet ended
    write_embeddings(tmp_path / "b.safetensors", {"<b>": torch.ones(2, 48)})
    minti.load_embeddings(tiny, tmp_path / "b.safetensors")
    said = tiny.encode_prompt("a <b>")
    remove_word(tiny, "<a>")
    first.close()  # a loop that was left alone
    assert tiny.words == {"<b>": [size, size + 1]}
    assert len(tiny.tokenizer) == len(matrix(tiny)) == size + 2
    assert torch.equal(tiny.encode_prompt("a <b>"), said)
    with pytest.raises(ValueError, match="'<a>' is no word that was added"):
        remove_word(tiny, "<a>")
    remove_word(tiny, "<b>")
    fresh = minti.StableDiffusion.from_pretrained(tiny_folder)
    assert same_vocabulary(tiny, fresh)
    with pytest.warns(UserWarning, match="cut off: 'red dog'"):  # as whole words
        tiny.encode_prompt("a " * 14 + "red dog")


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_a_cell_with_an_own_loop_that_runs_twice(tiny, tiny_folder, form, vectors):
    """The first word is attached still; the model says the second."""
    first = wrapper(tiny, row_update=form, num_vectors=vectors)
    optimizer = minti.prepare_for_textual_inversion(first)
    second, _ = train(tiny, row_update=form, steps=3)
    fresh = minti.StableDiffusion.from_pretrained(tiny_folder)
    fresh.add_word("<concept>", second.embedding.values)
    assert torch.equal(tiny.encode_prompt("a <concept>"), fresh.encode_prompt("a <concept>"))
    with pytest.raises(minti.TrainingError, match="<concept> was removed, begun anew"):
        optimizer.step()
    first.detach()
    assert torch.equal(tiny.encode_prompt("a <concept>"), fresh.encode_prompt("a <concept>"))


@pytest.mark.parametrize("gone", ["<a>", "<b>", "<c>"])
@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_a_word_that_is_removed_while_others_learn(tiny, tmp_path, form, gone):
    """The words before it learn on; the runs of those behind it, whose token ids change, are over."""
    words = {
        x: wrapper(tiny, placeholder_token=x, row_update=form, num_vectors=2, steps=3) for x in ("<a>", "<b>", "<c>")
    }
    runs = {x: minti.textual_inversion(word, pictures()) for x, word in words.items()}
    for run in runs.values():
        next(run)
    learned = {x: word.embedding.values.detach().clone() for x, word in words.items()}
    old = matrix(tiny)[: tiny.words["<a>"][0]].detach().clone()
    remove_word(tiny, gone)
    for x, word in words.items():
        minti.save_embeddings(word, tmp_path / "word.safetensors")
        assert torch.equal(read_embeddings(tmp_path / "word.safetensors")[x], learned[x])
    for x, run in runs.items():
        if x < gone:
            next(run)
            assert not torch.equal(words[x].embedding.values, learned[x])
            learned[x] = words[x].embedding.values.detach().clone()
        else:
            with pytest.raises(minti.TrainingError, match=f"{x} was removed, .* this run is over"):
                next(run)
        assert all(torch.equal(matrix(tiny)[ids], learned[y]) for y, ids in tiny.words.items())
        assert torch.equal(matrix(tiny)[: len(old)], old)
