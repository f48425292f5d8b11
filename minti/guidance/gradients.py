"""Classifier guidance and universal guidance, by the gradient of a classifier of noisy latents, or of any loss on the
predicted clean latents (lecture notes `002`, 6.2.1, 6.3, 10 and 15; questions `003`, 6). Each function returns a
`guidance` for `minti.sample`, from predict to predict; they can be combined."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from minti.denoising import DDIM, DDPM, Predict, Run, Sampler, SampleStep, Stop, make_sampler
from minti.runs.messages import short_repr
from minti.scheduler import NoiseScheduler
from minti.utils import randn

Guidance = Callable[[Predict], Predict]


def classifier_guidance(
    scheduler: NoiseScheduler, log_probability: Callable[[Tensor, int], Tensor], scale: float
) -> Guidance:
    """Classifier guidance, by a classifier of noisy latents (arXiv 2105.05233, Algorithm 2).

        epsilon' = epsilon - s sqrt(1 - alpha-bar_t) grad_x log p(y | x_t, t)

    At s = 1 it is the score of p(x_t | y). In DDPM's mean it is a shift by s beta / sqrt(alpha) grad log p; Algorithm 1
    shifts by s Sigma grad log p, the same for Sigma = beta but for sqrt(alpha), which goes to 1. It leaves out pure
    noise, where a schedule of zero SNR begins.

    `log_probability`: noisy latents (b, c, h, w) and their timestep -> (b,)."""

    def guided(predict: Predict, latents: Tensor, t: int) -> Tensor:
        output = predict(latents, t)
        if pure_noise(scheduler, t):
            return output
        _, noise = scheduler.clean_and_noise(output, latents, t)
        with torch.enable_grad():
            x = latents.detach().requires_grad_()
            slope = gradient(log_probability(x, t), x, t)
        noise = noise + scheduler.noise_from_score(scale * slope, t)
        return to_prediction_type(scheduler, scheduler.clean_from_noise(latents, noise, t), noise, t, scale)

    return lambda predict: partial(guided, predict)


def universal_guidance(
    scheduler: NoiseScheduler,
    loss: Callable[[Tensor], Tensor],
    scale: float,
    backward_steps: int = 0,
    backward_rate: float = 0.1,
) -> Guidance:
    """Universal guidance, by any loss on the predicted clean latents (arXiv 2302.07121, Alg. 1 without recurrence).

        epsilon' = epsilon + s sqrt(1 - alpha-bar_t) grad_{x_t} loss(x_0(x_t))            forward, through the network
        Delta = argmin loss(x_0 + Delta), by gradient descent from 0                      backward, without it
        epsilon'' = epsilon' - sqrt(alpha-bar_t / (1 - alpha-bar_t)) Delta,   that is x_0'' = x_0' + Delta

    In pure noise, where a schedule of zero SNR begins, x_0(x_t) is constant: only the backward part acts.

    `loss`: clean latents (b, c, h, w), scaled -> (b,). `scale`: 0 saves the forward part."""

    def guided(predict: Predict, latents: Tensor, t: int) -> Tensor:
        forward = not pure_noise(scheduler, t) and scale != 0
        with torch.set_grad_enabled(forward):
            x = latents.detach().requires_grad_(forward)
            clean, noise = scheduler.clean_and_noise(predict(x, t), x, t)
            slope = gradient(loss(clean), x, t) if forward else None
        delta = torch.zeros_like(latents)
        for _ in range(backward_steps):
            with torch.enable_grad():
                moved = (clean.detach() + delta).requires_grad_()
                delta = delta - backward_rate * gradient(loss(moved), moved, t)
        if forward:
            noise = noise.detach() - scheduler.noise_from_score(scale * slope, t)
            clean = scheduler.clean_from_noise(latents, noise, t)
        if backward_steps:
            clean = clean + delta
            noise = scheduler.noise_from_clean(latents, clean, t)
        return to_prediction_type(scheduler, clean, noise, t, scale)

    return lambda predict: partial(guided, predict)


def gradient(values: Tensor, x: Tensor, t: int) -> Tensor:
    """The gradient of each image's value, (b,), with respect to x, (b, c, h, w)."""
    if values.shape != (len(x),):
        raise ValueError(f"the loss has shape {tuple(values.shape)}; expected ({len(x)},), one value for each image")
    slope = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    if slope is None:
        raise ValueError("the loss gives no gradient: compute it from the latents, without detach or torch.no_grad")
    if not slope.isfinite().all():
        what = f"the loss's gradient is not finite at timestep {t}"
        raise ValueError(f"{what}; see what it divides by, or takes a log of")
    return slope


def pure_noise(scheduler: NoiseScheduler, t: int) -> bool:
    """Whether alpha-bar is 0 at timestep t (`rescale_betas_zero_snr`, arXiv 2305.08891), where gradients are useless;
    a network that predicts noise is refused there, since no clean latents follow from it."""
    if scheduler.alpha_bar(t) > 0:
        return False
    if scheduler.config.prediction_type == "epsilon":
        raise ValueError(
            f"timestep {t} is pure noise, from which a network that predicts noise tells no image, and no gradient; "
            "take one of prediction_type 'v_prediction' or 'sample', or rescale_betas_zero_snr away"
        )
    return True


def to_prediction_type(scheduler: NoiseScheduler, clean: Tensor, noise: Tensor, t: int, scale: float) -> Tensor:
    """(x_0, epsilon) in the model's prediction type, (b, c, h, w); `scale` is for the message of an overflow."""
    output = scheduler.target(clean, noise, t)
    if not output.isfinite().all():
        raise ValueError(f"guidance by a gradient has overflowed at timestep {t}, at scale {scale:g}; try a lower one")
    return output


@dataclass(frozen=True)
class Recurrent(Sampler):
    """Self-recurrence: repeats every step of DDPM or DDIM, noised back in between (arXiv 2302.07121, Algorithm 1).

        x_t = sqrt(alpha-bar_t / alpha-bar_s) x_s + sqrt(1 - alpha-bar_t / alpha-bar_s) z

    Multistep samplers would mix predictions of different noise; ODE samplers continue from values they do not yield."""

    sampler: str | Sampler
    times: int = 1

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times = {short_repr(self.times)}; expected 1 (no recurrence) or more")
        if not isinstance(make_sampler(self.sampler), DDPM | DDIM):
            raise ValueError(f"{short_repr(self.sampler)} cannot repeat a step; use ddpm or ddim")

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """Those of the sampler within."""
        return make_sampler(self.sampler).stops(scheduler, num_inference_steps)

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, sampler = run.latents, make_sampler(self.sampler)
        for number, ((_, level), (_, next_level)) in enumerate(run.intervals, run.start):
            for time in range(self.times):
                if time:
                    ratio = level.signal_rate / next_level.signal_rate
                    added = (level.noise_rate**2 - (ratio * next_level.noise_rate) ** 2).clamp(min=0) ** 0.5
                    z = randn(latents.shape, run.generator, latents.device, latents.dtype)
                    latents = ratio * latents + added * z
                step = next(iter(sampler(predict, replace(run, latents=latents, start=number))))
                latents = step.latents
            yield step
