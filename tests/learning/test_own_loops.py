"""Another optimizer than task 2's, and loops of one's own: in both forms the model has the word, and no other moves."""

import pytest
import torch
from helpers import ids_of, pictures, seeded, wrapper

import minti
from minti.textual_inversion import TrainingImages, batch_loss

FORMS = ("new_rows", "restore")


def matrix(model):
    return model.text_encoder.get_input_embeddings().weight


def another(word):
    """An optimizer that nobody has told of the word, and whose weight decay moves whatever it trains."""
    return torch.optim.AdamW(word.embedding.trainable(), lr=0.1, weight_decay=0.5)


def own_loop(word, optimizer, steps=3):
    """Exercise E4's, as somebody writes it who knows task 1 and 2 alone; yields after every step."""
    data, generator = TrainingImages(word.model, pictures()), seeded()
    for _ in range(steps):
        batch_loss(word.model, data.batch(2, word.prompts, generator)).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


@pytest.mark.parametrize("form", FORMS)
def test_another_optimizer_after_preparation(tiny, form):
    w, old = wrapper(tiny, row_update=form, steps=3, num_vectors=2), matrix(tiny).detach().clone()
    minti.prepare_for_textual_inversion(w)
    before = matrix(tiny)[ids_of(w)].detach().clone()
    for _ in minti.textual_inversion(w, pictures(), another(w)):
        assert torch.equal(matrix(tiny)[: len(old)], old)
        assert torch.equal(matrix(tiny)[ids_of(w)], w.embedding.values)
        assert (matrix(tiny)[ids_of(w)] - before).abs().max() > 0.01
        before = matrix(tiny)[ids_of(w)].detach().clone()


@pytest.mark.parametrize("make", [minti.prepare_for_textual_inversion, another], ids=["task 2's", "another"])
@pytest.mark.parametrize("form", FORMS)
def test_an_own_loop_ends_with_the_learned_vectors_in_the_matrix(tiny, form, make):
    w, old = wrapper(tiny, row_update=form), matrix(tiny).detach().clone()
    if make is another:
        minti.prepare_for_textual_inversion(w)
    optimizer = make(w)
    initial = w.embedding.values.detach().clone()
    for _ in own_loop(w, optimizer):
        pass
    attached = tiny.encode_prompt("a <concept>")
    w.detach()
    assert (matrix(tiny)[ids_of(w)] - initial).abs().max() > 0.01
    assert torch.equal(matrix(tiny)[ids_of(w)], w.embedding.values)
    assert torch.equal(matrix(tiny)[: len(old)], old)
    assert not matrix(tiny).requires_grad
    if make is not another:  # whose restored rows come only now
        assert torch.equal(tiny.encode_prompt("a <concept>"), attached)


def counted(word):
    """How often the word's `after_step` is called from now on, as a list that grows."""
    calls, after_step = [], word.embedding.after_step
    word.embedding.after_step = lambda model: calls.append(model) or after_step(model)
    return calls


@pytest.mark.parametrize("form", FORMS)
def test_after_step_is_called_once_for_each_step(tiny, form):
    w = wrapper(tiny, row_update=form, steps=2)
    optimizer = minti.prepare_for_textual_inversion(w)
    calls = counted(w)
    for count, _ in enumerate(own_loop(w, optimizer), 1):
        assert len(calls) == count
    for chosen in (optimizer, another(w)):
        trainer = minti.textual_inversion(w, pictures(), chosen)
        calls.clear()
        for step in trainer:
            assert len(calls) == step.step
