"""Directional textual inversion: against its authors' optimizer, and the geometry of the sphere."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import ids_of, pictures, seeded, train, wrapper

import minti
from minti.personalization.directional import LEARNING_RATE, SphericalSGD


class TheirSphericalSGD(torch.optim.Optimizer):
    """The step of github.com/kunheek/dti, src/dti/optim.py (MIT License, 2025 Kunhee Kim and NaHyeon Park), whose
    parameter is the direction: its own lines, with its default beta = 0."""

    def __init__(self, params, lr, kappa, target_embeds, eps=1e-8):
        super().__init__(params, dict(lr=lr, kappa=kappa, target_embeds=target_embeds, eps=eps))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad.data
                if group["kappa"] > 0.0 and group["target_embeds"] is not None:
                    grad = grad.sub(group["target_embeds"], alpha=group["kappa"])
                inner_product = (grad * p.data).sum(dim=-1, keepdim=True)
                grad = grad - inner_product * p.data
                h = grad.square().sum(dim=-1, keepdim=True)
                grad = grad / torch.sqrt(h).add(group["eps"])
                p.data.add_(grad, alpha=-group["lr"])
                norm = torch.linalg.norm(p.data, dim=-1, keepdim=True)
                p.data.div_(norm)


def problem(rows=3, d=16, length=0.7):
    """Rows of one length, and a loss that has a gradient everywhere."""
    start = length * F.normalize(torch.randn(rows, d, generator=seeded(), dtype=torch.float64), dim=1)
    to = torch.randn(rows, d, generator=seeded(2), dtype=torch.float64)
    return start, lambda rows: (rows - to).square().sum() + (rows * to).sum(dim=1).exp().sum()


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_steps_equal_the_authors(kappa):
    """Theirs learns v with loss(m v), ours the row m v itself."""
    start, loss = problem()
    ours, theirs = (start / size for size in (1, 0.7))
    ours, theirs = (torch.nn.Parameter(x.clone()) for x in (ours, theirs))
    mine = SphericalSGD([ours], lr=0.05, kappa=kappa)
    other = TheirSphericalSGD([theirs], lr=0.05, kappa=kappa, target_embeds=start / 0.7)
    for _ in range(30):
        for optimizer, value in ((mine, loss(ours)), (other, loss(0.7 * theirs))):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        # They divide by |g| + 1e-8.
        torch.testing.assert_close(ours.detach(), 0.7 * theirs.detach(), rtol=1e-4, atol=1e-7)


def test_a_step_is_tangential_and_turns_by_the_arc_tangent_of_the_rate():
    """v - lr g with |g| = 1 across v, made as long as v: an angle of atan(lr), in the plane of v and the gradient."""
    start, loss = problem()
    rows = torch.nn.Parameter(start.clone())
    optimizer = SphericalSGD([rows], lr=0.2)
    (gradient,) = torch.autograd.grad(loss(rows), rows)
    rows.grad = gradient.clone()
    optimizer.step()
    torch.testing.assert_close(rows.norm(dim=1), start.norm(dim=1), rtol=1e-12, atol=0)
    angle = torch.acos(F.cosine_similarity(rows.detach(), start, dim=1))
    torch.testing.assert_close(angle, torch.full_like(angle, math.atan(0.2)), rtol=1e-6, atol=0)
    v = F.normalize(start, dim=1)
    across = F.normalize(gradient - (gradient * v).sum(dim=1, keepdim=True) * v, dim=1)
    expected = math.cos(math.atan(0.2)) * v - math.sin(math.atan(0.2)) * across
    torch.testing.assert_close(F.normalize(rows.detach(), dim=1), expected, rtol=1e-9, atol=1e-12)


def test_with_the_length_free_it_is_sgd():
    """Of the projected, normalised gradient: torch's own step, before the length is put back."""
    start, loss = problem(length=1.0)
    rows, free = (torch.nn.Parameter(start.clone()) for _ in range(2))
    (gradient,) = torch.autograd.grad(loss(rows), rows)
    rows.grad = gradient.clone()
    SphericalSGD([rows], lr=0.1).step()
    free.grad = F.normalize(gradient - (gradient * start).sum(dim=1, keepdim=True) * start, dim=1)
    torch.optim.SGD([free], lr=0.1).step()
    torch.testing.assert_close(rows.detach(), F.normalize(free.detach(), dim=1), rtol=1e-9, atol=1e-12)


def test_the_prior_draws_back_to_the_first_direction():
    """Without any other gradient a von Mises-Fisher prior turns a row back to its mean direction, along the arc."""
    start = F.normalize(torch.randn(1, 16, generator=seeded()), dim=1)
    rows = torch.nn.Parameter(start.clone())
    optimizer = SphericalSGD([rows], lr=0.01, kappa=1e-3)
    with torch.no_grad():
        rows.copy_(F.normalize(start + 0.5 * torch.randn(1, 16, generator=seeded(2)), dim=1))
    far = F.cosine_similarity(rows.detach(), start)
    for _ in range(10):
        rows.grad = torch.full_like(rows, 1e-20)
        optimizer.step()
    near = F.cosine_similarity(rows.detach(), start)
    assert torch.acos(far) - torch.acos(near) == pytest.approx(10 * math.atan(0.01), rel=1e-3)


def test_a_word_that_is_not_in_the_batch_stays():
    """A row without a gradient: of a range of timesteps, or of a word beside others, that no image was drawn for. By
    the prior alone it would be drawn back by as much as the others learn."""
    start, _ = problem(rows=2)
    rows = torch.nn.Parameter(start.clone())
    optimizer = SphericalSGD([rows], lr=0.1, kappa=0.5)
    with torch.no_grad():
        rows.copy_(start.flip(0))
    rows.grad = torch.stack([torch.zeros(16), torch.ones(16)]).double()
    optimizer.step()
    torch.testing.assert_close(rows[0].detach(), start[1], rtol=1e-12, atol=0)
    assert not torch.allclose(rows[1], start[0], rtol=1e-3)


def test_the_rate_is_of_the_optimizer_that_takes_it(tiny):
    """Radians for a directional word; a config that is changed to AdamW has AdamW's again."""
    config = wrapper(tiny, directional=True, learning_rate=None, placeholder_token="<one>").config
    word = minti.TrainingWrapper(tiny, config)
    assert minti.prepare_for_textual_inversion(word).param_groups[0]["lr"] == word.learning_rate == LEARNING_RATE
    word.detach()
    plain = minti.TrainingWrapper(tiny, replace(config, directional=False, placeholder_token="<two>"))
    vocabulary = tiny.text_encoder.get_input_embeddings().weight[: tiny.tokenizer.vocab_size]
    expected = 0.3 * vocabulary.square().mean().sqrt().item()
    assert minti.prepare_for_textual_inversion(plain).param_groups[0]["lr"] == pytest.approx(expected)


def test_beside_a_lora_its_rate_is_adamw_s(tiny):
    """A tenth of its own turn: AdamW's first step moves each of d numbers by its rate, a row by rate sqrt(d)."""
    word = wrapper(tiny, directional=True, learning_rate=0.1)
    for _ in minti.textual_inversion(word, pictures()):
        break
    config = minti.DreamBoothConfig(learns="lora", prior_weight=0.0, initializer_token="toy", steps=1)
    training = minti.DreamBooth(tiny, config, word)
    rate = training.optimizer().param_groups[1]["lr"]
    assert rate * 48**0.5 / word.embedding.values.norm().item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("options", [{"directional": True}, {"row_norm": 2.0}])
def test_zeros_have_no_direction(tiny, options):
    with pytest.raises(ValueError, match="starts from a vector of zeros, which has no direction"):
        minti.prepare_for_textual_inversion(wrapper(tiny, initializer_token=torch.zeros(1, 48), **options))
    assert tiny.text_encoder.get_input_embeddings().weight.isfinite().all()


@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_a_directional_word_has_the_vocabulary_s_length(tiny, form):
    """In both forms, after every step; and the rows of the other words stay as they are."""
    before = tiny.text_encoder.get_input_embeddings().weight.detach().clone()
    w, states = train(tiny, steps=6, directional=True, num_vectors=2, row_update=form)
    lengths = w.embedding.values.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), w.vocabulary_norm), rtol=1e-5, atol=0)
    assert [state.row_norm for state in states] == pytest.approx([w.vocabulary_norm] * 6, rel=1e-5)
    weight = tiny.text_encoder.get_input_embeddings().weight.detach()
    assert torch.equal(weight[: len(before)], before)
    assert torch.equal(weight[ids_of(w)], w.embedding.values)
    first = F.normalize(w.initial_vectors(), dim=1)
    assert (F.cosine_similarity(w.embedding.values, first, dim=1) < 0.999).all()


@pytest.mark.parametrize("options", [{}, {"directional": True, "kappa": 0.01}, {"row_norm": 1.0}])
def test_both_forms_learn_the_same(tiny_folder, options):
    """The new rows alone, and E4's whole matrix whose other rows are restored."""
    words = []
    for form in ("new_rows", "restore"):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w, _ = train(model, steps=5, row_update=form, **options)
        words.append(w.embedding.values.detach().clone())
    torch.testing.assert_close(*words, rtol=1e-4, atol=1e-6)


def test_adamw_with_the_length_kept(tiny_folder):
    """OneTrainer's "preserve embedding norm": AdamW's step, then the length put back."""
    kept, free = (minti.StableDiffusion.from_pretrained(tiny_folder) for _ in range(2))
    w, _ = train(kept, steps=1, row_norm=1.5)
    start = F.normalize(w.initial_vectors(), dim=1) * 1.5 * w.vocabulary_norm
    assert w.embedding.values.norm().item() == pytest.approx(1.5 * w.vocabulary_norm, rel=1e-5)
    other = wrapper(free, steps=1)
    other.initial_vectors = lambda: start
    for _ in minti.textual_inversion(other, w.trainer.data.pixels):
        pass
    expected = F.normalize(other.embedding.values.detach(), dim=1) * 1.5 * w.vocabulary_norm
    torch.testing.assert_close(w.embedding.values.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_norm": 0.0}, "row_norm = 0.0"),
        ({"kappa": 0.1}, "it needs directional"),
        ({"directional": True, "kappa": -1.0}, "kappa = -1.0"),
        ({"directional": True, "max_row_norm": 2.0}, "choose one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        minti.TextualInversionConfig(**options)
