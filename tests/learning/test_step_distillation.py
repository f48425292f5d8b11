"""Progressive and consistency distillation: against the paper's formulas, Gaussians with a known flow, and a loop of
diffusers' and peft's parts."""

import copy

import diffusers
import peft
import pytest
import torch
from helpers import random_lora, seeded

import minti
from minti.adapters.network import Network
from minti.distillation.consistency import consistency, consistency_function, consistency_loss
from minti.distillation.progressive import one_step_target, progressive, progressive_loss, step_loss
from minti.distillation.teacher import Batch, ddim_step, ddim_steps, guided, without
from minti.samplers.few_step import boundary_scalings
from minti.scheduler import NoiseScheduler, SchedulerConfig

KINDS = ["epsilon", "sample", "v_prediction"]
MEAN, STD = 0.7, 0.4


class World:
    """As much of a model as the losses ask for: a scheduler and any network."""

    def __init__(self, unet, prediction_type="epsilon"):
        self.unet, self.scheduler = unet, NoiseScheduler(SchedulerConfig(prediction_type=prediction_type))
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.double()


def any_network(x, t, context):
    return torch.tanh(1.3 * x + context.mean()) * (0.3 + t[:, None, None, None] / 1500)


def batch(*timesteps, seed=0):
    """One image for each tuple of timesteps, in float64."""
    n, g = len(timesteps), seeded(seed)
    latents, context = (torch.randn(n, *size, generator=g, dtype=torch.float64) for size in ((4, 3, 3), (5, 6)))
    return Batch(latents, context, torch.tensor(timesteps))


# --- progressive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_a_network_that_answers_the_target_is_the_teacher_s_two(kind):
    """For any teacher, to rounding in float64, also to the clean image and to timestep 0."""
    world = World(any_network, kind)
    given = batch((999, 749, 499), (499, 249, 0), (300, 100, -1), (20, 10, 5))
    t, _, u = given.timesteps.T
    end = ddim_steps(world.scheduler, world.unet, given)
    target = one_step_target(world.scheduler, given.latents, end, t, u)
    level = world.scheduler.level(t, given.latents)
    noise = (given.latents - level.signal_rate * target) / level.noise_rate
    answer = world.scheduler.target(target, noise, t)  # the raw output with these clean latents
    found = ddim_step(world.scheduler, answer, given.latents, t, u)
    torch.testing.assert_close(found, end, rtol=1e-11, atol=1e-12)
    assert (end - given.latents).abs().mean() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_s_steps_are_diffusers_ddim(kind):
    theirs = diffusers.DDIMScheduler(
        prediction_type=kind, clip_sample=False, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    theirs.set_timesteps(4)
    stops = [*theirs.timesteps.tolist()[:3], 0]  # 750, 500, 250, 0
    scheduler, x = NoiseScheduler(SchedulerConfig(prediction_type=kind)), torch.randn(2, 4, 3, 3, generator=seeded(1))
    found = ddim_steps(scheduler, any_network, Batch(x, torch.zeros(2, 5, 6), torch.tensor([stops, stops])))
    for t in stops[:3]:
        x = theirs.step(any_network(x, torch.tensor([t, t]), torch.zeros(1)), t, x).prev_sample
    torch.testing.assert_close(found, x)


def test_the_loss_by_the_paper_s_formula():
    """Written out for an image with SNR above 1 and one below; alpha^2 = alpha-bar, sigma^2 = 1 - alpha-bar."""
    student = lambda x, t, context: 0.5 * x  # noqa: E731
    world, given = World(student), batch((100, 50, 20), (900, 700, 500))
    end, total = ddim_steps(world.scheduler, any_network, given), 0
    for i, (t, _, u) in enumerate(given.timesteps.tolist()):
        (alpha_t, sigma_t), (alpha_u, sigma_u) = (
            (a**0.5, (1 - a) ** 0.5) for a in world.scheduler.alphas_cumprod[[t, u]]
        )
        z = given.latents[i]
        target = (end[i] - sigma_u / sigma_t * z) / (alpha_u - sigma_u / sigma_t * alpha_t)
        clean = (z - sigma_t * 0.5 * z) / alpha_t
        snr = (alpha_t / sigma_t) ** 2
        total += max(snr.item(), 1) * (clean - target).square().mean() / 2
        assert (snr > 1) == (t == 100)
    found = progressive_loss(world, given, any_network)
    torch.testing.assert_close(found, total.float())


def exact_denoiser(scheduler):
    """The noise that the perfect network predicts where x_0 ~ N(MEAN, STD^2)."""

    def network(x, t, context):
        a = scheduler.alpha_bar(t, x)
        return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a)

    return network


def test_two_steps_on_a_gaussian_in_closed_form():
    """Each DDIM step is linear there, so two of them are; the target's one step is the same map."""
    world = World(None)
    world.unet = exact_denoiser(world.scheduler)
    given = batch((900, 600, 300))
    a, b, c = world.scheduler.alphas_cumprod[[900, 600, 300]]
    x = given.latents
    for at, below in ((a, b), (b, c)):
        slope = (at * STD**2 + 1 - at) ** -1
        clean, noise = (
            MEAN + at**0.5 * STD**2 * slope * (x - at**0.5 * MEAN),
            (1 - at) ** 0.5 * slope * (x - at**0.5 * MEAN),
        )
        x = below**0.5 * clean + (1 - below) ** 0.5 * noise
    t, _, u = given.timesteps.T
    found = one_step_target(world.scheduler, given.latents, ddim_steps(world.scheduler, world.unet, given), t, u)
    # x = sqrt(c) x~ + sqrt(1 - c) (z - sqrt(a) x~) / sqrt(1 - a), solved for x~
    ratio = ((1 - c) / (1 - a)) ** 0.5
    torch.testing.assert_close(found, (x - ratio * given.latents) / (c**0.5 - ratio * a**0.5))


def test_distilled_again_and_again_a_gaussian_s_student_ends_where_the_teacher_does():
    """One parameter pair for each timestep, fitted by least squares instead of Adam: 8, 4, 2 and 1 steps all end at the
    same latents as 16."""
    scheduler = World(None).scheduler
    stops = [*range(960, 0, -60), 0]  # 16 steps
    noise = torch.randn(1, 1, 400, 1, generator=seeded(2), dtype=torch.float64)
    run = lambda network, stops: ddim_steps(scheduler, network, Batch(noise, noise, torch.tensor([stops])))  # noqa: E731
    teacher = exact_denoiser(scheduler)
    expected = run(teacher, stops)
    while len(stops) > 2:
        fitted, x = {}, noise
        for t, m, u in zip(stops[::2], stops[1::2], stops[2::2]):
            end = ddim_steps(scheduler, teacher, Batch(x, x, torch.tensor([[t, m, u]])))
            target = one_step_target(scheduler, x, end, torch.tensor([t]), torch.tensor([u]))
            columns = torch.stack([x.flatten(), torch.ones(400, dtype=torch.float64)], 1)
            fitted[t], x = torch.linalg.lstsq(columns, target.flatten()[:, None]).solution.flatten(), end

        def teacher(x, t, context, fitted=fitted):
            slope, offset = fitted[t[0].item()]
            return scheduler.noise_from_clean(x, slope * x + offset, t)

        stops = stops[::2]
        torch.testing.assert_close(run(teacher, stops), expected, rtol=1e-7, atol=1e-8)


def data_of(model, size=2):
    def data(generator):
        clean = torch.randn(size, 4, 8, 8, generator=generator)
        return clean, model.encode_prompt(["a red cat", "the dog"][:size])

    return data


def test_the_loop_takes_adam_s_steps_down_the_loss(tiny):
    """Against torch's Adam on the paper's loss by hand; the teacher, a copy, stays as it was."""
    teacher, other = copy.deepcopy(tiny.unet), copy.deepcopy(tiny)
    loop = progressive(
        tiny, teacher, Network(tiny), data_of(tiny), [999, 749, 499, 249, 0], steps=3, generator=seeded(3)
    )
    draws = [loop.draw(g) for g in [seeded(3)] for _ in range(3)]
    assert {tuple(row) for given in draws for row in given.timesteps.tolist()} <= {(999, 749, 499), (499, 249, 0)}
    optimizer = torch.optim.Adam(other.unet.requires_grad_(True).parameters(), 2e-4)
    for step, (given, rate) in enumerate(zip(draws, (1, 2 / 3, 1 / 3))):
        optimizer.param_groups[0]["lr"] = 2e-4 * rate
        optimizer.zero_grad()
        loss = progressive_loss(other, given, teacher)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.unet.parameters(), 1.0)
        optimizer.step()
        assert next(loop).loss == pytest.approx(loss.item(), rel=1e-4)
    for ours, expected in zip(tiny.unet.parameters(), other.unet.parameters()):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.parameters() if p.grad is not None)


def test_guided_is_classifier_free_guidance_for_a_timestep_of_each_image(tiny):
    x, t = torch.randn(2, 4, 8, 8, generator=seeded(4)), torch.tensor([700, 30])
    context, negative = tiny.encode_prompt(["a red cat", "the dog"]), tiny.encode_prompt("")
    with torch.no_grad():
        found = guided(tiny.unet, negative, 4.0)(x, t, context)
        for i in range(2):
            uncond, cond = (tiny.unet(x[[i]], t[[i]], c) for c in (negative, context[[i]]))
            torch.testing.assert_close(found[[i]], uncond + 4 * (cond - uncond), rtol=1e-4, atol=1e-5)
    assert guided(tiny.unet, negative, 1) is tiny.unet


# --- consistency ------------------------------------------------------------------------------------------------------


def exact_consistency_function(scheduler):
    """The raw output, noise, of which f is x_0 = mean + std (x_t - sqrt(a) mean) / sqrt(a std^2 + 1 - a)."""

    def network(x, t, context):
        a, (skip, out) = scheduler.alpha_bar(t, x), (s[:, None, None, None].double() for s in boundary_scalings(t))
        f = MEAN + STD * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a) ** 0.5
        clean = (f - skip * x) / out
        return scheduler.noise_from_clean(x, clean, t)

    return network


def test_the_consistency_function_of_a_gaussian_has_loss_0():
    """As the solver's steps get finer: DDIM's error is of second order in a step, so half the step has a quarter of the
    distance; and the wrong function keeps its loss."""
    world = World(None)
    world.unet, teacher = exact_consistency_function(world.scheduler), exact_denoiser(world.scheduler)
    distance = lambda stride: consistency_loss(world, batch((600, 600 - stride)), teacher, huber=1e-9).item()  # noqa: E731
    assert distance(1) < 1e-5
    assert distance(40) / distance(20) == pytest.approx(4, rel=0.3)
    world.unet = teacher  # the denoiser is no consistency function
    assert distance(20) > 100 * 1e-5


def test_a_constant_function_has_loss_0_without_the_boundary_condition():
    """The misprint of `003`, 32: f(z_t) against f(z_u), nothing else. With c_skip and c_out a constant network's f is
    none: at t = 0 it is the latents themselves."""
    world, given = World(lambda x, t, context: torch.full_like(x, 3.0), "sample"), batch((19, 0))
    t, u = given.timesteps.T
    assert torch.equal(world.unet(given.latents, t, None), world.unet(given.latents + 1, u, None))  # loss 0
    assert consistency_loss(world, given, any_network) > 0.1
    assert torch.equal(
        consistency_function(world.scheduler, given.latents + 9, given.latents, torch.tensor([0])), given.latents
    )


def test_the_target_takes_no_gradient():
    """Of |f(z_t) - sg f(z_u)| with respect to a network's one weight: numerically only the first f moves."""
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    network = lambda x, t, context: weight * x  # noqa: E731
    world, given = World(network, "sample"), batch((500, 480))
    consistency_loss(world, given, any_network, huber=0.5).backward()
    frozen, nudge = (lambda x, t, context: 0.8 * x), 1e-3
    losses = []
    for value in (0.8 + nudge, 0.8 - nudge):
        world.unet = lambda x, t, context, value=value: value * x
        losses.append(consistency_loss(world, given, any_network, huber=0.5, target=frozen).item())
    assert weight.grad.item() == pytest.approx((losses[0] - losses[1]) / (2 * nudge), rel=1e-3)


def their_step(unet, scheduler, given, negative, w, huber=1e-3):
    """The loss of diffusers' script for LCM-LoRA: peft's model is the student, and with its adapter off the teacher;
    their scheduler's scalings, their DDIM for one image at a time, LCM's w = s - 1."""
    lcm = diffusers.LCMScheduler()
    alphas = scheduler.alphas_cumprod
    total = []
    for z, context, (t, u) in zip(given.latents.split(1), given.context.split(1), given.timesteps):
        clean = lambda output, x, t: (x - (1 - alphas[t]).sqrt() * output) / alphas[t].sqrt()  # noqa: E731
        (skip, out), (skip_u, out_u) = (lcm.get_scalings_for_boundary_condition_discrete(s) for s in (t, u))
        found = skip * z + out * clean(unet(z, t[None], context).sample, z, t)
        with torch.no_grad():
            with unet.disable_adapter():
                cond, uncond = (unet(z, t[None], c).sample for c in (context, negative))
            x_0 = clean(cond, z, t) + w * (clean(cond, z, t) - clean(uncond, z, t))
            noise = cond + w * (cond - uncond)
            below = alphas[u].sqrt() * x_0 + (1 - alphas[u]).sqrt() * noise
            target = skip_u * below + out_u * clean(unet(below, u[None], context).sample, below, u)
        total.append(torch.sqrt((found - target) ** 2 + huber**2) - huber)
    return torch.cat(total).mean()


def test_some_steps_equal_diffusers_lcm_lora_script(tiny, pipeline):
    """Loss by loss, and the matrices after them, with AdamW, clipping and guidance; theirs are peft's, on the same
    layers and from the same random start."""
    lora, w = minti.LoRA(tiny, rank=3, generator=seeded(7)), 3.0
    config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    theirs = peft.get_peft_model(copy.deepcopy(pipeline.unet), config)
    for name, layer in theirs.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            layer.lora_A["default"].weight.data = lora.pairs[f"unet.{name}"].down.data.clone()
    negative = tiny.encode_prompt("").detach()
    teacher = guided(without(lora, tiny.unet), negative, w + 1)
    options = {"steps": 6, "learning_rate": 1e-3, "generator": seeded(8)}
    loop = consistency(tiny, teacher, lora, data_of(tiny), **options)
    generator = seeded(8)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in loop:
        given = loop.draw(generator)
        assert all(u == max(t - 20, 0) and (t + 1) % 20 == 0 for t, u in given.timesteps.tolist())
        loss = their_step(theirs, tiny.scheduler, given._replace(context=given.context.detach()), negative, w)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert step.loss == pytest.approx(loss.item(), rel=1e-3)
    for name, layer in theirs.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            pair = lora.pairs[f"unet.{name}"]
            torch.testing.assert_close(pair.up, layer.lora_B["default"].weight, rtol=0, atol=2e-4)
            assert pair.up.abs().max() > 1e-3


def test_without_a_lora_the_network_answers_as_before(tiny):
    """Bit for bit while it is attached, also where a call fails."""
    lora, x = random_lora(tiny), torch.randn(1, 4, 8, 8, generator=seeded(9))
    arguments = (x, torch.tensor([5]), tiny.encode_prompt("a cat"))
    with torch.no_grad():
        before = tiny.unet(*arguments)
        with lora.attached(tiny):
            assert torch.equal(without(lora, tiny.unet)(*arguments), before)
            assert not torch.allclose(tiny.unet(*arguments), before)
            with pytest.raises(AttributeError):
                without(lora, tiny.unet)(None, None, None)
    assert lora.weight == 1


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_a_model_that_predicts_noise_is_not_distilled_from_pure_noise(tiny):
    tiny.scheduler = NoiseScheduler(SchedulerConfig(rescale_betas_zero_snr=True))
    options = {"generator": seeded(0)}
    with pytest.raises(ValueError, match=r"timestep 999 is pure noise .*begin below it, or distil .* v_prediction"):
        progressive(tiny, tiny.unet, Network(tiny), data_of(tiny), [999, 499, 0], **options)
    with pytest.raises(ValueError, match="timestep 999 is pure noise"):
        consistency(tiny, tiny.unet, Network(tiny), data_of(tiny), **options)
    progressive(tiny, tiny.unet, Network(tiny), data_of(tiny), [998, 499, 0], **options)
    tiny.scheduler = NoiseScheduler(SchedulerConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    given = Batch(torch.randn(1, 4, 8, 8, generator=seeded(1)), tiny.encode_prompt("a"), torch.tensor([[999, 499, 0]]))
    assert progressive_loss(tiny, given, tiny.unet).isfinite()


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [([499, 999, 0], "each below the one before"), ([999], "at least two"), ([999, 749, 499, 0], "cannot be halved")],
)
def test_timesteps_that_do_not_fit_are_refused(tiny, timesteps, message):
    with pytest.raises(ValueError, match=message):
        progressive(tiny, tiny.unet, Network(tiny), data_of(tiny), timesteps, generator=seeded(0))


def test_a_stored_pair_has_the_same_loss(tiny):
    """`step_loss` of where the teacher's steps end, wherever they were computed."""
    given = Batch(torch.randn(1, 4, 8, 8, generator=seeded(1)), tiny.encode_prompt("a"), torch.tensor([[999, 499, 0]]))
    end = ddim_steps(tiny.scheduler, tiny.unet, given)
    stored = step_loss(tiny, given.latents, end, torch.tensor([999]), torch.tensor([0]), given.context)
    assert torch.equal(stored, progressive_loss(tiny, given, tiny.unet))
