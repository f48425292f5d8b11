"""Several words on one model, learned and loaded in any order: each is what it would be alone."""

import itertools

import pytest
import torch
from helpers import ids_of, learning, pictures, seeded, train, trainable, wrapper, write

import minti
from minti.embeddings import read_embeddings, write_embeddings

FORMS = ("new_rows", "restore")


def embedding(model):
    return model.text_encoder.get_input_embeddings()


def assert_detached(model):
    """Nothing of the training is left in the model."""
    assert not embedding(model)._forward_hooks
    assert embedding(model).weight.grad is None
    assert not trainable(model)


def assert_word(model, path, folder):
    """The model says of the file's word what a fresh model says that has loaded nothing else."""
    fresh = minti.StableDiffusion.from_pretrained(folder)
    (word,) = minti.load_embeddings(fresh, path)
    ids = model.tokenizer.convert_tokens_to_ids([word])
    assert torch.equal(embedding(model).weight[ids], read_embeddings(path)[word][:1])
    assert torch.equal(model.encode_prompt(f"a photo of {word}"), fresh.encode_prompt(f"a photo of {word}"))


def a_file(path, word="<c>", rows=2):
    write_embeddings(path, {word: torch.randn(rows, 48, generator=seeded())})
    return path


# --- one after the other ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [("new_rows", "restore", "load"), ("restore", "load", "new_rows"), ("load", "new_rows", "restore")]
)
def test_any_order_of_learning_and_loading(tiny, tiny_folder, tmp_path, order):
    old, paths = embedding(tiny).weight.clone(), []
    for number, what in enumerate(order):
        paths.append(tmp_path / f"{number}.safetensors")
        if what == "load":
            minti.load_embeddings(tiny, a_file(paths[-1], f"<word-{number}>"))
        else:
            w, _ = train(tiny, placeholder_token=f"<word-{number}>", num_vectors=2, row_update=what, steps=2)
            minti.save_embeddings(w, paths[-1])
        assert_detached(tiny)
    for path in paths:
        assert_word(tiny, path, tiny_folder)
    assert torch.equal(embedding(tiny).weight[: len(old)], old)


def test_the_second_word_s_learning_rate_is_the_first_one_s(tiny, tmp_path):
    before = wrapper(tiny, learning_rate=None)
    write_embeddings(tmp_path / "long.safetensors", {"<long>": torch.full((3, 48), 100.0)})
    minti.load_embeddings(tiny, tmp_path / "long.safetensors")
    after = wrapper(tiny, learning_rate=None)
    assert after.learning_rate == before.learning_rate
    assert after.vocabulary_norm == before.vocabulary_norm


# --- in the middle of a loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_loading_inside_the_loop(tiny, tiny_folder, tmp_path, form):
    """A loaded word is itself at once and ever after, and the other one learns as if nothing had happened."""
    w, paths = wrapper(tiny, row_update=form, steps=3), []
    for state in learning(w):
        if state.step in (1, 3):  # with a step to come, and with the restoring of the best vectors alone
            paths.append(a_file(tmp_path / f"{state.step}.safetensors", f"<word-{state.step}>"))
            minti.load_embeddings(tiny, paths[-1])
        for path in paths:
            assert_word(tiny, path, tiny_folder)
    assert_detached(tiny)
    minti.save_embeddings(w, tmp_path / "learned.safetensors")
    for path in (*paths, tmp_path / "learned.safetensors"):
        assert_word(tiny, path, tiny_folder)
    alone, _ = train(minti.StableDiffusion.from_pretrained(tiny_folder), row_update=form, steps=3)
    assert w.embedding.values.shape == (1, 48)
    assert torch.equal(w.embedding.values, alone.embedding.values)


@pytest.mark.parametrize("forms", [("new_rows", "restore"), ("restore", "restore")])
def test_two_words_in_turns(tiny, tiny_folder, forms):
    """Both end with the vectors that each learns alone, though the one's loop ends in the middle of the other's."""
    options = [
        {"placeholder_token": f"<word-{i}>", "row_update": form, "steps": 3 - i, "seed": i}
        for i, form in enumerate(forms)
    ]
    both = [wrapper(tiny, **each) for each in options]
    first, second = (learning(w) for w in both)
    for loop in (first, second, first):
        next(loop)
    assert len(list(second)) == 1
    assert len(list(first)) == 1
    assert_detached(tiny)
    for w, each in zip(both, options):
        model, prompt = minti.StableDiffusion.from_pretrained(tiny_folder), f"a {each['placeholder_token']}"
        alone, _ = train(model, **each)
        assert torch.equal(w.embedding.values, alone.embedding.values)
        assert torch.equal(tiny.encode_prompt(prompt), model.encode_prompt(prompt))


# --- how a loop ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["break", "exception", "training error"])
def test_the_model_is_detached_however_the_loop_ends(tiny, form, end):
    w = wrapper(tiny, row_update=form, steps=9)
    try:
        for state in learning(w):
            if state.step == 2 and end == "break":
                break
            if state.step == 2 and end == "exception":
                raise KeyError
            if state.step == 2 and end == "training error":
                write(w, torch.full_like(w.embedding.values, torch.nan))
    except (KeyError, minti.TrainingError):
        assert end in ("exception", "training error")
    assert_detached(tiny)
    assert w.embedding.values.isfinite().all()
    assert torch.equal(embedding(tiny).weight[ids_of(w)], w.embedding.values)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_detached_where_a_loop_cannot_begin(tiny, form):
    w = wrapper(tiny, row_update=form)
    optimizer = minti.prepare_for_textual_inversion(w)
    with pytest.raises(ValueError, match="no images"):
        minti.textual_inversion(w, [], optimizer)
    assert_detached(tiny)


@pytest.mark.parametrize("forms", [*itertools.product(FORMS, FORMS)])
def test_a_loop_that_is_left_alone_does_not_overwrite_what_was_learned_since(tiny, forms):
    paused = wrapper(tiny, placeholder_token="<a>", row_update=forms[0], steps=1)
    loop = learning(paused)
    assert next(loop).finished  # evaluated, and not yet ended
    own = paused.embedding.values.detach().clone()
    newer, _ = train(tiny, placeholder_token="<b>", row_update=forms[1], steps=2)
    rows = newer.embedding.values.detach().clone()
    loop.close()
    weight = embedding(tiny).weight
    assert torch.equal(weight[ids_of(newer)], rows)
    assert torch.equal(weight[ids_of(paused)], own)
    assert_detached(tiny)


@pytest.mark.parametrize("form", FORMS)
def test_a_loop_of_the_same_word_that_is_left_alone(tiny, form):
    """The word is trained on with the same vectors; only then is the first loop closed."""
    w = wrapper(tiny, row_update=form, steps=1)
    optimizer = minti.prepare_for_textual_inversion(w)
    first = learning(w, optimizer=optimizer)
    next(first)
    before = w.embedding.values.detach().clone()
    for _ in learning(w, pictures(seed=1), optimizer):
        pass
    newer = w.embedding.values.detach().clone()
    assert not torch.equal(newer, before)
    first.close()
    assert torch.equal(w.embedding.values, newer)
    assert torch.equal(embedding(tiny).weight[ids_of(w)], newer)
    assert_detached(tiny)


@pytest.mark.parametrize("forms", [*itertools.product(FORMS, FORMS)])
def test_words_that_were_prepared_before_any_was_learned(tiny, forms):
    """And a loop whose last act was a validation loss: neither undoes what another word has learned since."""
    a, b = (wrapper(tiny, placeholder_token=f"<{x}>", row_update=form, steps=4) for x, form in zip("ab", forms))
    optimizers = {word: minti.prepare_for_textual_inversion(word) for word in (b, a)}
    for _ in minti.textual_inversion(b, pictures(), optimizers[b]):
        pass
    learned = b.embedding.values.detach().clone()
    monitor = minti.monitored(minti.textual_inversion(a, pictures(), optimizers[a]))
    assert torch.equal(embedding(tiny).weight[ids_of(b)], learned)
    monitor.interval, loop = 2, iter(monitor)
    assert [next(loop).validation_loss is None for _ in range(2)] == [True, False]
    write(b, torch.ones_like(learned))
    loop.close()
    assert torch.equal(embedding(tiny).weight[ids_of(b)], torch.ones_like(learned))
    assert_detached(tiny)
