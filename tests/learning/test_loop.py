"""Exercise E4, task 3a: the loop."""

import copy

import numpy as np
import pytest
import torch
from helpers import ids_of, pictures, train, wrapper

import minti
from minti import text

FORMS = ("new_rows", "restore")
SEVERAL = {"num_vectors": 3, "gradient_accumulation": 2, "max_gradient_norm": 0.01}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_new_vectors_change(tiny, form):
    """Many steps with strong weight decay: every other row and parameter stays bit-identical."""
    before = {part: copy.deepcopy(getattr(tiny, part).state_dict()) for part in ("unet", "vae", "text_encoder")}
    w, _ = train(tiny, row_update=form, weight_decay=0.5, steps=25, num_vectors=2)
    for part, old in before.items():
        for key, value in getattr(tiny, part).state_dict().items():
            if "token_embedding" in key:
                assert len(value) == len(old[key]) + 2
                assert not torch.equal(value[-1], value[-2])
                value = value[:-2]
            assert torch.equal(value, old[key]), key
    initial = tiny.text_encoder.get_input_embeddings().weight[text.single_token_id(tiny.tokenizer, "toy")]
    assert (w.embedding.values - initial).abs().min() > 0


@pytest.mark.parametrize("options", [{}, pytest.param(SEVERAL, marks=pytest.mark.slow)], ids=["plain", "several"])
def test_both_forms_learn_the_same_vector(tiny_folder, options):
    learned = []
    for form in FORMS:
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w, states = train(model, row_update=form, steps=20, **options)
        learned.append(
            (w.embedding.values.detach(), [state.loss for state in states], model.encode_prompt("a <concept>"))
        )
    torch.testing.assert_close(learned[0][0], learned[1][0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(learned[0][1], learned[1][1], rtol=1e-6)
    torch.testing.assert_close(learned[0][2], learned[1][2], rtol=1e-5, atol=1e-6)


def test_one_step_is_adamw_on_the_vectors_gradient(tiny):
    """The first step by hand: AdamW moves every number by the learning rate, after decay (arXiv 1711.05101)."""
    w = wrapper(tiny, weight_decay=0.1, steps=1)
    start = tiny.text_encoder.get_input_embeddings().weight[text.single_token_id(tiny.tokenizer, "toy")].clone()
    for state in minti.textual_inversion(w, pictures()):
        assert state.learning_rate == 0.01
    moved = w.embedding.values.detach()[0] - start * (1 - 0.01 * 0.1)
    # |g| / (|g| + 1e-8) is 1 wherever the gradient is not tiny
    assert moved.abs().max() == pytest.approx(0.01, rel=1e-3)
    assert moved.abs().median() == pytest.approx(0.01, rel=1e-2)


def test_the_loss_of_a_step_is_the_mean_over_its_batches(tiny):
    trainer, of_batches = minti.textual_inversion(wrapper(tiny, gradient_accumulation=3), pictures()), []
    loss = trainer.loss

    def noted(model, batch):
        of_batches.append(loss(model, batch))
        return of_batches[-1]

    trainer.loss = noted
    step = next(trainer)
    assert len({loss.item() for loss in of_batches}) == 3
    assert step.loss == pytest.approx(np.mean([loss.item() for loss in of_batches]), rel=1e-6)


def test_same_seed_same_word(tiny_folder):
    learned = []
    for seed in (0, 0, 1):
        w, _ = train(minti.StableDiffusion.from_pretrained(tiny_folder), steps=5, seed=seed)
        learned.append(w.embedding.values.detach())
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], learned[2])


@pytest.mark.parametrize("form", FORMS)
def test_the_model_samples_with_the_learned_vectors_at_every_yield_and_after_a_break(tiny, form):
    w = wrapper(tiny, row_update=form, steps=50)
    contexts = []
    for state in minti.textual_inversion(w, pictures()):
        contexts.append(tiny.encode_prompt("a <concept>").detach())
        weight = tiny.text_encoder.get_input_embeddings().weight
        assert torch.equal(weight[ids_of(w)], w.embedding.values)
        if state.step == 4:
            break
    assert not torch.equal(contexts[0], contexts[1])
    assert torch.equal(tiny.encode_prompt("a <concept>"), contexts[-1])


def test_learning_rate_schedules(tiny_folder):
    for schedule, expected in (("constant", [0.5, 1, 1, 1, 1, 1]), ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447])):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        _, states = train(model, steps=6, lr_schedule=schedule, warmup_steps=2)
        np.testing.assert_allclose([state.learning_rate for state in states], 0.01 * np.array(expected), rtol=1e-5)


def test_the_length_of_the_vectors_can_be_limited(tiny):
    w, states = train(tiny, steps=10, learning_rate=1.0, max_row_norm=1.5, num_vectors=2)
    assert max(state.row_norm for state in states) <= 1.5 * w.vocabulary_norm * (1 + 1e-5)
    assert states[-1].row_norm > 1.2 * w.vocabulary_norm


def test_a_fixed_number_of_steps_is_kept(tiny):
    _, states = train(tiny, steps=37)
    assert [state.step for state in states] == list(range(1, 38))
    assert states[-1].validation_loss is not None
