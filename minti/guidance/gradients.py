"""Classifier guidance and universal guidance: gradients of a classifier of noisy latents, or of any loss on the
predicted clean latents.

Each function gives what `minti.sample` takes as `guidance`, from predict to predict; they stack. Lecture notes `002`,
6.2.1, 6.3, 10 and 15; questions `003`, 6.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
    """Towards a class, by a classifier that knows noisy latents (arXiv 2105.05233, Algorithm 2).

        epsilon' = epsilon - s sqrt(1 - alpha-bar_t) grad_x log p(y | x_t, t)

    At s = 1 the score of p(x_t | y), exactly. In DDPM's mean it is a shift by s beta / sqrt(alpha) grad log p, where
    Algorithm 1 shifts by s Sigma grad log p: with Sigma = beta the same but for sqrt(alpha), which goes to 1. In pure
    noise, where a schedule of zero SNR begins, there is no class to be seen, and the prediction stays as it is.

    `log_probability`: noisy latents (b, c, h, w) and their timestep -> (b,).
    Raises ValueError, when it is asked: no gradient, or one that is not finite; a scale at which it overflows.
    """

    def guidance(predict: Predict) -> Predict:
        def guided(latents: Tensor, t: int) -> Tensor:
            output = predict(latents, t)
            if pure_noise(scheduler, t):
                return output
            _, noise = scheduler.clean_and_noise(output, latents, t)
            with torch.enable_grad():
                x = latents.detach().requires_grad_()
                slope = gradient(log_probability(x, t), x, t)
            noise = noise + scheduler.noise_from_score(scale * slope, t)
            return to_prediction_type(scheduler, scheduler.clean_from_noise(latents, noise, t), noise, t, scale)

        return guided

    return guidance


def universal_guidance(
    scheduler: NoiseScheduler,
    loss: Callable[[Tensor], Tensor],
    scale: float,
    backward_steps: int = 0,
    backward_rate: float = 0.1,
) -> Guidance:
    """Down the slope of any loss on the predicted clean latents (arXiv 2302.07121, Algorithm 1 without recurrence).

        epsilon' = epsilon + s sqrt(1 - alpha-bar_t) grad_{x_t} loss(x_0(x_t))            forward, through the network
        Delta = argmin loss(x_0 + Delta), by some steps down the slope from 0             backward, without it
        epsilon'' = epsilon' - sqrt(alpha-bar_t / (1 - alpha-bar_t)) Delta,   that is x_0'' = x_0' + Delta

    In pure noise, where a schedule of zero SNR begins, x_0(x_t) is the same for every x_t: only the backward part acts.

    `loss`: clean latents (b, c, h, w), scaled -> (b,). `scale` 0 leaves the forward part and its cost away.
    Raises ValueError, when it is asked: no gradient, or one that is not finite; a scale at which it overflows.
    """

    def guidance(predict: Predict) -> Predict:
        def guided(latents: Tensor, t: int) -> Tensor:
            slopes = not pure_noise(scheduler, t) and scale != 0
            with torch.set_grad_enabled(slopes):
                x = latents.detach().requires_grad_(slopes)
                clean, noise = scheduler.clean_and_noise(predict(x, t), x, t)
                forward = gradient(loss(clean), x, t) if slopes else None
            delta = torch.zeros_like(latents)
            for _ in range(backward_steps):
                with torch.enable_grad():
                    moved = (clean.detach() + delta).requires_grad_()
                    delta = delta - backward_rate * gradient(loss(moved), moved, t)
            if forward is not None:
                noise = noise.detach() - scheduler.noise_from_score(scale * forward, t)
                clean = scheduler.clean_from_noise(latents, noise, t)
            if backward_steps:
                clean = clean + delta
                noise = scheduler.noise_from_clean(latents, clean, t)
            return to_prediction_type(scheduler, clean, noise, t, scale)

        return guided

    return guidance


def gradient(values: Tensor, x: Tensor, t: int) -> Tensor:
    """The gradient of each image's value, (b,), with respect to it, (b, c, h, w).

    Raises ValueError: not one value an image, none that depends on x, or a gradient that is not finite.
    """
    if values.shape != (len(x),):
        raise ValueError(f"the loss has shape {tuple(values.shape)}; expected ({len(x)},), one value for each image")
    slope = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    if slope is None:
        raise ValueError("the loss gives no gradient: compute it from the latents, without detach or torch.no_grad")
    if not slope.isfinite().all():
        raise ValueError(
            f"the loss's gradient is not finite at timestep {t}; see what it divides by, or takes a log of"
        )
    return slope


def pure_noise(scheduler: NoiseScheduler, t: int) -> bool:
    """Whether alpha-bar is 0 at timestep t (`rescale_betas_zero_snr`, arXiv 2305.08891): no gradient says anything.
    Raises ValueError: it is, and the network predicts noise, from which no clean latents follow there."""
    if scheduler.alpha_bar(t) > 0:
        return False
    if scheduler.config.prediction_type == "epsilon":
        raise ValueError(
            f"timestep {t} is pure noise, from which a network that predicts noise tells no image, and no gradient; "
            "take one of prediction_type 'v_prediction' or 'sample', or rescale_betas_zero_snr away"
        )
    return True


def to_prediction_type(scheduler: NoiseScheduler, clean: Tensor, noise: Tensor, t: int, scale: float) -> Tensor:
    """(x_0, epsilon) in the model's prediction type, (b, c, h, w).
    Raises ValueError: it is not finite, which is told with the scale of what has bent it."""
    output = scheduler.target(clean, noise, t)
    if not output.isfinite().all():
        raise ValueError(f"guidance by a gradient has overflowed at timestep {t}, at scale {scale:g}; try a lower one")
    return output


@dataclass(frozen=True)
class Recurrent(Sampler):
    """Self-recurrence: takes every step several times, noised back in between (arXiv 2302.07121, Algorithm 1).

        x_t = sqrt(alpha-bar_t / alpha-bar_s) x_s + sqrt(1 - alpha-bar_t / alpha-bar_s) z

    Raises ValueError: less than once; another sampler than DDPM and DDIM. Those of `multistep` remember former steps,
    which noise in between makes wrong, and those of `ode` go on from something else than what they yield.
    """

    sampler: str | Sampler
    times: int = 1

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times = {short_repr(self.times)}; expected 1 (no recurrence) or more")
        if not isinstance(make_sampler(self.sampler), DDPM | DDIM):
            raise ValueError(f"{short_repr(self.sampler)} cannot repeat a step; use ddpm or ddim")

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """Those of the sampler."""
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
