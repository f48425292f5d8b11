"""Validation loss, best values, early stopping: when a word is learned, which vectors are kept, and failing loudly."""

import re

import numpy as np
import pytest
import torch
from helpers import ids_of, learning, pictures, train, wrapper

import minti
from minti.runs.monitor import STEP_COST, evaluation_interval, has_levelled_off


def test_the_best_vectors_are_kept(tiny):
    """A learning rate that soon spoils the word: what stays is the best evaluation, not the last."""
    w = wrapper(tiny, steps=96, learning_rate=0.05)
    rows, losses = {}, {}
    for state in learning(w):
        losses.setdefault(0, state.initializer_loss)
        if state.validation_loss is not None:
            rows[state.step], losses[state.step] = w.embedding.values.detach().clone(), state.validation_loss
    best = min(losses, key=losses.get)
    assert 0 < best < max(losses), "the test needs a run that gets better, then worse"
    assert torch.equal(w.embedding.values, rows[best])
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[ids_of(w)], rows[best])


def test_a_run_that_never_got_better_keeps_what_it_began_with(tiny):
    """Its optimizer goes uphill."""
    w = wrapper(tiny, steps=2)
    optimizer = minti.prepare_for_textual_inversion(w)
    optimizer.param_groups[0]["maximize"] = True
    *_, last = learning(w, optimizer=optimizer)
    assert last.validation_loss > last.initializer_loss
    assert w.trainer.monitor.best_step == 0
    toy = tiny.tokenizer.convert_tokens_to_ids("toy</w>")
    assert torch.equal(w.embedding.values[0], tiny.text_encoder.get_input_embeddings().weight[toy])


def test_a_run_that_is_left_before_it_was_judged_keeps_its_last_vectors(tiny):
    w = wrapper(tiny, steps=50)
    for state in learning(w):
        last = w.embedding.values.detach().clone()
        if state.step == 2:
            break
    assert state.validation_loss is None
    assert torch.equal(w.embedding.values, last)
    assert not torch.equal(last, w.trainer.monitor.best["values"])


def test_levelling_off():
    steps = np.arange(60)
    falling, levelling = 1.0 - 0.01 * steps, np.exp(-steps / 5)
    assert not any(has_levelled_off(list(falling[:n])) for n in range(60))
    stopped = next(n for n in range(61) if has_levelled_off(list(levelling[:n])))
    assert 12 <= stopped <= 40
    assert not has_levelled_off([1.0, 1.0, 1.0])
    # All of the fall in one evaluation, and noise from there on, a tenth as large.
    for seed in range(20):
        sudden = [1.0, *(0.8 + 0.02 * np.random.default_rng(seed).standard_normal(60))]
        assert 6 <= next(n for n in range(61) if has_levelled_off(sudden[:n])) <= 20


def test_levelling_off_by_variance():
    """Losses on a line: the variance of n neighbours is (n^2 - 1) / 12, and 99 / (n^2 - 1) < 0.02 from n = 71 on.

    The last four of 71 still bring 4/70 of the whole fall, more than a twentieth.
    """
    line = list(1.0 - np.arange(71) / 128)
    assert not has_levelled_off(line[:70])
    assert has_levelled_off(line)


def test_levelling_off_by_gain():
    """The last four losses are better by a quarter of the whole fall, and by a little less."""
    last = [1.75, 1.5, 1.0, 1.75]
    assert not has_levelled_off([2.0, 1.25, *last], gain=0.25)
    assert has_levelled_off([2.0, 1.25 - 2**-10, *last], gain=0.25)
    assert not has_levelled_off([1.25 - 2**-10, *last], gain=0.25)  # too few to tell


@pytest.mark.parametrize(("size", "batch"), [(16, 8), (8, 1), (8, 4)])
def test_evaluations_take_at_most_a_twentieth(size, batch):
    assert size / (evaluation_interval(size, batch) * batch * STEP_COST) <= 0.05


def test_training_stops_by_itself(tiny):
    _, states = train(tiny, max_steps=5000, learning_rate=0.05)
    assert states[-1].finished
    assert len(states) < 5000
    assert [state.finished for state in states].count(True) == 1


def test_no_images(tiny):
    with pytest.raises(ValueError, match="no images to learn from"):
        minti.textual_inversion(wrapper(tiny), [])
    assert not tiny.words


def test_a_loss_that_is_not_finite(tiny):
    """Of weights that are none the first is named; they are looked at only now."""
    with torch.no_grad():
        tiny.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(
        minti.TrainingError, match=r"the loss is nan at step 1 .*, of image .*; so is unet: conv_out\.bias"
    ):
        next(minti.textual_inversion(wrapper(tiny), pictures()))


def test_images_that_are_not_finite(tiny):
    with pytest.raises(ValueError, match="the latents have numbers that are not finite"):
        minti.textual_inversion(wrapper(tiny), torch.full((1, 3, 16, 16), float("nan")))


def test_a_word_without_gradient(tiny):
    with torch.no_grad():
        for name, parameter in tiny.unet.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.zero_()  # the UNet no longer listens to the prompt
    with pytest.raises(minti.TrainingError, match="there is no gradient at step 1 of the word <concept>"):
        next(minti.textual_inversion(wrapper(tiny), pictures()))


def test_vectors_that_do_not_move(tiny):
    with pytest.raises(minti.TrainingError, match="after 5 steps the word <concept> has not moved"):
        train(tiny, learning_rate=0.0, steps=10)


def names_the_rate(rate, steps):
    """Whether a run is stopped; what stops it is one line that names the rate, whatever else it says."""
    try:
        list(steps)
    except minti.TrainingError as error:
        assert f"a lower learning rate (it is {rate:g})" in str(error) and "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize(("monitored", "form"), [(True, "new_rows"), (False, "new_rows"), (False, "restore")])
def test_whatever_stops_a_word_at_an_absurd_rate_names_the_rate(tiny_folder, monitored, form):
    """At some rates it is not stopped, but only never better; at 1e6 it is."""
    for rate in (1e2, 1e4, 1e6):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w = wrapper(model, learning_rate=rate, steps=20, batch_size=1, row_update=form)
        trainer = minti.textual_inversion(w, pictures())
        stopped = names_the_rate(rate, minti.monitored(trainer) if monitored else trainer)
    assert stopped


@pytest.mark.parametrize(("learns", "decay"), [("lora", 1e-2), ("network", 1e6)])
def test_whatever_stops_dreambooth_at_an_absurd_rate_names_the_rate(tiny_folder, learns, decay):
    """Also where its own weights are not finite by then, which is no fault of their file."""
    config = {"learns": learns, "prior_weight": 0.0, "steps": 5, "batch_size": 1, "weight_decay": decay}
    for rate in (1e2, 1e4, 1e6):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        config |= {"learning_rate": rate, "templates": ("a {}",), "initializer_token": "toy"}
        training = minti.DreamBooth(model, minti.DreamBoothConfig(**config))
        stopped = names_the_rate(rate, minti.dreambooth(training, pictures()))
    assert stopped


def test_a_validation_loss_that_is_not_finite_ends_the_run(tiny):
    """The step itself was fine; what it made of the model is not."""
    w = wrapper(tiny, steps=2, learning_rate=0.5)
    monitor = minti.monitored(minti.textual_inversion(w, pictures()))
    monitor.validation.noise.fill_(float("nan"))
    with pytest.raises(
        minti.TrainingError, match=r"validation loss is nan after step 2; try a lower .* \(it is 0\.5\)"
    ):
        list(monitor)


@pytest.mark.parametrize(
    ("step", "advice"), [(1, "fetch that file again"), (2, "try a lower learning rate (it is 0.01)")]
)
def test_a_weight_that_is_not_finite_after_a_while_may_be_the_rate_s_doing(tiny, step, advice):
    """At the first step it was so in the file."""
    trainer = minti.textual_inversion(wrapper(tiny, steps=2), pictures())
    for _ in range(step - 1):
        next(trainer)
    with torch.no_grad():
        tiny.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(minti.TrainingError, match=re.escape(f"so is unet: conv_out.bias: {advice}")):
        next(trainer)


def test_after_ctrl_c_in_the_last_step_iterating_on_just_ends(tiny):
    monitor = minti.monitored(minti.textual_inversion(wrapper(tiny, steps=2), pictures()))
    loss = monitor.trainer.loss

    def interrupted(model, batch):
        if monitor.trainer.number == 2:
            raise KeyboardInterrupt
        return loss(model, batch)

    monitor.trainer.loss, states = interrupted, iter(monitor)
    assert next(states).step == 1
    with pytest.raises(KeyboardInterrupt):
        next(states)
    assert list(states) == list(monitor) == list(monitor.trainer) == []
