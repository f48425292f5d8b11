"""Exercise E4: the loss, what trains and what does not, and the loop."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import pictures

import minti
from minti import text
from minti.learning.pictures import Concept
from minti.learning.progress import STEP_COST, FixedSet, evaluation_interval, has_levelled_off
from minti.learning.settings import TrainingWrapper

FORMS = ("new_rows", "restore")


def wrapper(model, **options) -> TrainingWrapper:
    defaults = {"templates": ("a photo of a {}", "the {}"), "batch_size": 2, "learning_rate": 0.01}
    return minti.TrainingWrapper(model, minti.TextualInversionConfig(**(defaults | options)))


def train(model, images=None, **options):
    """Trains to the end; returns the wrapper and all states."""
    trained = wrapper(model, **options)
    return trained, list(minti.textual_inversion(trained, pictures() if images is None else images))


# --- task 1: the loss -------------------------------------------------------------------------------------------------


def test_loss_and_its_gradient_equal_diffusers(tiny, pipeline):
    """d loss / d embedding through the frozen UNet and text encoder, put together from diffusers' parts."""
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    timesteps = torch.tensor([17, 801])
    ids = text.tokenize(["a photo of a cat", "the toy"], tiny.tokenizer)

    gradients, losses = [], []
    for model, unet in ((tiny, None), (pipeline, pipeline.unet)):
        weight = model.text_encoder.get_input_embeddings().weight.requires_grad_(True)
        context = model.text_encoder(ids)[0]
        if unet is None:
            loss = minti.diffusion_loss(wrapper(tiny), latents, timesteps, context, noise=noise)
        else:
            noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
            loss = F.mse_loss(unet(noisy, timesteps, context).sample, noise)
        loss.backward()
        losses.append(loss.item())
        gradients.append(weight.grad)
    assert losses[0] == losses[1]
    assert gradients[0].abs().max() > 1e-6
    assert torch.equal(*gradients)


def test_loss_draws_its_noise_from_the_generator(tiny):
    w, latents, t = wrapper(tiny), torch.zeros(2, 4, 8, 8), torch.tensor([5, 6])
    context = tiny.encode_prompt(["a", "cat"])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    drawn = minti.diffusion_loss(w, latents, t, context, generator=torch.Generator().manual_seed(3))
    assert drawn == minti.diffusion_loss(w, latents, t, context, noise=noise)


# --- task 2: the setup ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_only_the_new_rows_change(tiny, form):
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
    assert (w.rows.values - initial).abs().min() > 0


@pytest.mark.parametrize("options", [{}, {"num_vectors": 3, "gradient_accumulation": 2, "max_gradient_norm": 0.01}])
def test_both_forms_learn_the_same_vector(tiny_folder, options):
    learned = []
    for form in FORMS:
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w, states = train(model, row_update=form, steps=20, **options)
        learned.append((w.rows.values.detach(), [state.loss for state in states], model.encode_prompt("a <concept>")))
    torch.testing.assert_close(learned[0][0], learned[1][0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(learned[0][1], learned[1][1], rtol=1e-6)
    torch.testing.assert_close(learned[0][2], learned[1][2], rtol=1e-5, atol=1e-6)


def test_the_lean_form_keeps_nothing_for_the_old_rows(tiny):
    w = wrapper(tiny, num_vectors=2)
    optimizer = minti.prepare_for_textual_inversion(w)
    next(minti.textual_inversion(w, pictures(), optimizer))
    (parameter,) = optimizer.param_groups[0]["params"]
    assert parameter.shape == (2, 48)
    assert all(v.numel() <= parameter.numel() for v in optimizer.state[parameter].values())
    assert tiny.text_encoder.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_preparation(tiny, form):
    w = wrapper(tiny, row_update=form, num_vectors=2, initializer_token="cat", placeholder_token="<New>")
    optimizer = minti.prepare_for_textual_inversion(w)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert tiny.tokenizer(" <NEW> <new>_1", add_special_tokens=False).input_ids == w.placeholder_ids
    weight = tiny.text_encoder.get_input_embeddings().weight
    for row in weight[w.placeholder_ids]:
        assert torch.equal(row, weight[text.single_token_id(tiny.tokenizer, "cat")])
    trainable = [p for part in (tiny.unet, tiny.vae, tiny.text_encoder) for p in part.parameters() if p.requires_grad]
    assert len(trainable) == (1 if form == "restore" else 0)


@pytest.mark.parametrize("form", FORMS)
def test_torch_schedulers_accept_the_patched_step(tiny, form):
    w = wrapper(tiny, row_update=form)
    optimizer = minti.prepare_for_textual_inversion(w)
    assert optimizer.step.__func__
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 4)
    old = tiny.text_encoder.get_input_embeddings().weight.detach().clone()
    for _ in range(4):
        for parameter in w.rows.parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
    new = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(new[: w.rows.start], old[: w.rows.start])
    assert not torch.equal(new[w.rows.start :], old[w.rows.start :])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placeholder_token": "cat"}, "in the vocabulary already"),
        ({"initializer_token": "zebra"}, "is not a single token"),
        ({"templates": ("a " * 14 + "{}",)}, "does not contain all 1 vectors"),
        ({"num_vectors": 14}, "use a shorter template or fewer vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_words_that_cannot_be_learned(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.prepare_for_textual_inversion(wrapper(tiny, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("a photo of it",)}, "has no {}"),
        ({"templates": "poem"}, "unknown templates 'poem'"),
        ({"row_update": "all"}, "unknown row_update 'all'"),
        ({"lr_schedule": "step"}, "unknown lr_schedule 'step'"),
        ({"steps": 0}, "steps = 0; expected at least 1"),
    ],
)
def test_bad_configs(options, message):
    with pytest.raises(ValueError, match=message):
        minti.TextualInversionConfig(**options)


# --- task 3a: the loop ------------------------------------------------------------------------------------------------


def test_one_step_is_adamw_on_the_rows_gradient(tiny):
    """The first step by hand: AdamW moves every number by the learning rate, after decay (arXiv 1711.05101)."""
    w = wrapper(tiny, weight_decay=0.1, steps=1)
    start = tiny.text_encoder.get_input_embeddings().weight[text.single_token_id(tiny.tokenizer, "toy")].clone()
    for state in minti.textual_inversion(w, pictures()):
        assert state.learning_rate == 0.01
    moved = w.rows.values.detach()[0] - start * (1 - 0.01 * 0.1)
    # |g| / (|g| + 1e-8) is 1 wherever the gradient is not tiny
    assert moved.abs().max() == pytest.approx(0.01, rel=1e-3)
    assert moved.abs().median() == pytest.approx(0.01, rel=1e-2)


def test_same_seed_same_word(tiny_folder):
    learned = []
    for seed in (0, 0, 1):
        w, _ = train(minti.StableDiffusion.from_pretrained(tiny_folder), steps=5, seed=seed)
        learned.append(w.rows.values.detach())
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], learned[2])


def test_accumulating_is_a_larger_batch(tiny_folder):
    """Gradients of two accumulated batches of one, against both together in one batch of two."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder)
    w = wrapper(model)
    minti.prepare_for_textual_inversion(w)
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t, prompts = torch.tensor([100, 900]), ["a photo of a <concept>", "the <concept>"]
    minti.diffusion_loss(w, latents, t, model.encode_prompt(prompts), noise).backward()
    together = w.rows.gradient.clone()
    w.rows.values.grad = None
    for i in range(2):
        part = slice(i, i + 1)
        (minti.diffusion_loss(w, latents[part], t[part], model.encode_prompt(prompts[i]), noise[part]) / 2).backward()
    torch.testing.assert_close(w.rows.gradient, together, rtol=1e-4, atol=1e-6 * together.abs().max().item())


def test_checkpointing_gives_the_same_gradient_for_less_memory(tiny):
    """Bit for bit; what autograd keeps between forward and backward is less than half."""
    w = wrapper(tiny)
    minti.prepare_for_textual_inversion(w)
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t, context = torch.tensor([100, 900]), tiny.encode_prompt(["a photo of a <concept>", "the <concept>"])
    gradients, kept = [], []
    for on in (False, True):
        tiny.unet.set_checkpointing(on)
        storages = {}

        def remember(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = minti.diffusion_loss(w, latents, t, context, noise)
        weights = {p.untyped_storage().data_ptr() for p in tiny.unet.parameters()}
        kept.append(sum(size for where, size in storages.items() if where not in weights))
        gradients += torch.autograd.grad(loss, context, retain_graph=True)
    assert torch.equal(*gradients)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("form", FORMS)
def test_the_model_samples_with_the_learned_rows_at_every_yield_and_after_a_break(tiny, form):
    w = wrapper(tiny, row_update=form, steps=50)
    contexts = []
    for state in minti.textual_inversion(w, pictures()):
        contexts.append(tiny.encode_prompt("a <concept>").detach())
        weight = tiny.text_encoder.get_input_embeddings().weight
        assert torch.equal(weight[w.placeholder_ids], w.rows.values)
        if state.step == 4:
            break
    assert not torch.equal(contexts[0], contexts[1])
    assert torch.equal(tiny.encode_prompt("a <concept>"), contexts[-1])


def test_the_best_rows_are_kept(tiny):
    """A learning rate that soon spoils the word: what stays is the best evaluation, not the last."""
    w = wrapper(tiny, steps=200, learning_rate=0.05)
    rows, losses = {}, {}
    for state in minti.textual_inversion(w, pictures()):
        losses.setdefault(0, state.initializer_loss)
        if state.fixed_loss is not None:
            rows[state.step], losses[state.step] = w.rows.values.detach().clone(), state.fixed_loss
    best = min(losses, key=losses.get)
    assert 0 < best < max(losses), "the test needs a run that gets better, then worse"
    assert torch.equal(w.rows.values, rows[best])
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[w.placeholder_ids], rows[best])


def test_the_fixed_loss_is_the_mean_over_its_set(tiny):
    w = wrapper(tiny)
    minti.prepare_for_textual_inversion(w)
    fixed = FixedSet(w, Concept(tiny, pictures()), 6, torch.Generator().manual_seed(0))
    prompts = ["a photo of a <concept>", "the <concept>"]
    with torch.no_grad():
        each = [
            minti.diffusion_loss(
                w,
                fixed.latents[i : i + 1],
                fixed.timesteps[i : i + 1],
                tiny.encode_prompt(prompts[i % 2]),
                fixed.noise[i : i + 1],
            ).item()
            for i in range(6)
        ]
    assert fixed.loss(prompts) == pytest.approx(np.mean(each), rel=1e-5)
    assert fixed.loss(prompts) == fixed.loss(prompts)
    assert fixed.timesteps.tolist() == [83, 250, 416, 583, 750, 916]


def test_flipping_adds_mirror_images(tiny):
    concept = Concept(tiny, pictures(), flip=True)
    assert len(concept) == 6
    with torch.no_grad():
        mirrored = tiny.encode(pictures()[1:2].flip(-1))
    torch.testing.assert_close(concept.mean[4:5], mirrored.mean)
    draws = [concept.draw(torch.tensor([4]), torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_learning_rate_schedules(tiny_folder):
    for schedule, expected in (("constant", [0.5, 1, 1, 1, 1, 1]), ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447])):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        _, states = train(model, steps=6, lr_schedule=schedule, warmup_steps=2)
        np.testing.assert_allclose([state.learning_rate for state in states], 0.01 * np.array(expected), rtol=1e-5)


def test_default_learning_rate_is_relative_to_the_vocabulary(tiny):
    rms = tiny.text_encoder.get_input_embeddings().weight.square().mean().sqrt().item()
    assert wrapper(tiny, learning_rate=None).learning_rate == pytest.approx(0.3 * rms)


def test_the_length_of_the_rows_can_be_limited(tiny):
    w, states = train(tiny, steps=10, learning_rate=1.0, max_row_norm=1.5, num_vectors=2)
    assert max(state.row_norm for state in states) <= 1.5 * w.vocabulary_norm * (1 + 1e-5)
    assert states[-1].row_norm > 1.2 * w.vocabulary_norm


@pytest.mark.parametrize("form", FORMS)
def test_clipping_looks_at_the_new_rows_alone(tiny, form):
    w = wrapper(tiny, row_update=form, max_gradient_norm=None)
    optimizer = minti.prepare_for_textual_inversion(w)
    norms = []
    optimizer.register_step_pre_hook(lambda *_: norms.append(w.rows.gradient.norm().item()))
    state = next(minti.textual_inversion(w, pictures(), optimizer))
    assert state.gradient_norm == pytest.approx(norms[0])
    if form == "restore":  # the template's words and the padding have gradients of their own
        assert len(norms) == 1


# --- stopping, and failing loudly -------------------------------------------------------------------------------------


def test_levelling_off():
    steps = np.arange(60)
    falling, levelling = 1.0 - 0.01 * steps, np.exp(-steps / 5)
    assert not any(has_levelled_off(list(falling[:n])) for n in range(60))
    stopped = next(n for n in range(61) if has_levelled_off(list(levelling[:n])))
    assert 12 <= stopped <= 40
    assert not has_levelled_off([1.0, 1.0, 1.0])
    # All of the fall in one evaluation, and noise from there on.
    sudden = [1.0, *(0.8 + 0.02 * np.random.default_rng(0).standard_normal(60))]
    assert 12 <= next(n for n in range(61) if has_levelled_off(sudden[:n])) <= 40


@pytest.mark.parametrize(("size", "batch"), [(16, 8), (8, 1), (8, 4)])
def test_evaluations_take_at_most_a_twentieth(size, batch):
    assert size / (evaluation_interval(size, batch) * batch * STEP_COST) <= 0.05


def test_training_stops_by_itself(tiny):
    _, states = train(tiny, max_steps=5000, learning_rate=0.05)
    assert states[-1].finished
    assert len(states) < 5000
    assert [state.finished for state in states].count(True) == 1


def test_a_fixed_number_of_steps_is_kept(tiny):
    _, states = train(tiny, steps=37)
    assert [state.step for state in states] == list(range(1, 38))
    assert states[-1].fixed_loss is not None


def test_no_pictures(tiny):
    with pytest.raises(ValueError, match="no pictures to learn from"):
        next(minti.textual_inversion(wrapper(tiny), []))


def test_a_loss_that_is_not_finite(tiny):
    with pytest.raises(minti.TrainingError, match="the loss is nan at step 1"):
        next(minti.textual_inversion(wrapper(tiny), torch.full((1, 3, 16, 16), float("nan"))))


def test_a_word_without_gradient(tiny):
    with torch.no_grad():
        for name, parameter in tiny.unet.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.zero_()  # the UNet no longer listens to the prompt
    with pytest.raises(minti.TrainingError, match="receives no gradient"):
        next(minti.textual_inversion(wrapper(tiny), pictures()))


def test_rows_that_do_not_move(tiny):
    with pytest.raises(minti.TrainingError, match="have not moved"):
        train(tiny, learning_rate=0.0, steps=10)
