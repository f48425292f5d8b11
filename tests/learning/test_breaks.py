"""Breaks, errors and Ctrl-C at any moment: the vocabulary stays as it is, and a run that goes on misses nothing."""

import pytest
import torch
from helpers import ids_of, learning, pictures, wrapper

import minti
from minti.runs import monitor

FORMS = ("new_rows", "restore")


def matrix(model):
    return model.text_encoder.get_input_embeddings().weight


def load(folder):
    return minti.StableDiffusion.from_pretrained(folder)


def interrupting(function, at, after=False):
    """The function, which raises KeyboardInterrupt in one call of it; `after`: when its work is done."""
    calls = []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == at and not after:
            raise KeyboardInterrupt
        result = function(*args, **options)
        if len(calls) == at:
            raise KeyboardInterrupt
        return result

    return interrupted


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_within_the_optimizer_s_step_moves_no_other_word(tiny, form):
    w, old = wrapper(tiny, row_update=form, steps=4), matrix(tiny).detach().clone()
    minti.prepare_for_textual_inversion(w)
    optimizer = torch.optim.AdamW(w.embedding.trainable(), lr=0.1, weight_decay=0.5)
    trainer = minti.textual_inversion(w, pictures(), optimizer)
    optimizer.step = interrupting(optimizer.step, at=3, after=True)
    with pytest.raises(KeyboardInterrupt):
        list(trainer)
    assert torch.equal(matrix(tiny)[: len(old)], old)
    assert not matrix(tiny).requires_grad


@pytest.mark.parametrize("where", ["draw", "loss"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_a_run_that_went_on_after_ctrl_c(tiny, tiny_folder, tmp_path, form, where):
    w = wrapper(tiny, row_update=form, steps=4)
    trainer = minti.textual_inversion(w, pictures())
    setattr(trainer, where, interrupting(getattr(trainer, where), at=2))
    with pytest.raises(KeyboardInterrupt):
        list(trainer)
    assert next(trainer).step == 2
    minti.save_checkpoint(w, tmp_path)
    assert [step.step for step in trainer] == [3, 4]
    again = wrapper(load(tiny_folder), row_update=form, steps=4)
    list(minti.textual_inversion(again, pictures(), checkpoint=minti.load_checkpoint(tmp_path)))
    assert torch.equal(again.embedding.values, w.embedding.values)


@pytest.mark.parametrize("goes_on", ["monitored", "plain"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_goes_on_after_a_break(tiny, tiny_folder, tmp_path, monkeypatch, form, goes_on):
    """Not from the best values, which the break has restored, and its checkpoints have the values of their steps."""
    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 2)
    options = {"row_update": form, "steps": 8, "learning_rate": 0.5}  # the best is not the last
    straight = wrapper(load(tiny_folder), **options)
    expected = [straight.embedding.values.detach().clone() for _ in learning(straight)]
    w = wrapper(tiny, **options)
    watched = minti.monitored(minti.textual_inversion(w, pictures()))
    for state in watched:
        if state.step == 3:
            break
    if goes_on == "plain":
        w.embedding.load_state_dict(watched.last)
    for state in watched if goes_on == "monitored" else watched.trainer:
        assert torch.equal(w.embedding.values, expected[state.step - 1])
        if state.step == 5:
            minti.save_checkpoint(w, tmp_path)
            break
    assert torch.equal(minti.load_checkpoint(tmp_path).state["adapter"]["values"], expected[4])


@pytest.mark.parametrize("form", FORMS)
def test_vectors_that_were_cut_are_not_cut_again(tiny, tiny_folder, tmp_path, form):
    """Rounded, a length is a little above what it was cut to; a run that goes on must not cut it once more."""
    options = {"row_update": form, "num_vectors": 4, "max_row_norm": 40.0, "learning_rate": 5.0, "steps": 5}
    w = wrapper(tiny, **options)
    for step in minti.textual_inversion(w, pictures()):
        minti.save_checkpoint(w, tmp_path / str(step.step))
    norms = w.embedding.values.detach().norm(dim=1)
    assert norms.max() == pytest.approx(40 * w.vocabulary_norm, rel=2e-5), "the test needs vectors that are cut"
    for step in (2, 3, 4):
        again = wrapper(load(tiny_folder), **options)
        list(minti.textual_inversion(again, pictures(), checkpoint=minti.load_checkpoint(tmp_path / str(step))))
        assert torch.equal(again.embedding.values, w.embedding.values)
    assert torch.equal(matrix(tiny)[ids_of(w)], w.embedding.values)
