"""Other losses than the mean of squares: Huber's robust loss, min-SNR and variational weights, alpha masks."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from minti.model import StableDiffusion
from minti.scheduler import NoiseScheduler
from minti.textual_inversion import Batch


@dataclass(frozen=True)
class DiffusionLoss:
    """The mean over a batch of images, each the mean of its squared errors (DDPM, eq. 14).

    Attributes:
        huber: an error beyond this counts linearly instead of squared (Huber's loss; `003`, 26); None: none does.
        min_snr: gamma of min-SNR weighting (arXiv 2303.09556), usually 5: timesteps with little noise count no more
            than those whose signal-to-noise ratio is gamma; None: all count alike.
        variational: the weights of the variational bound, which `003`, 3 and 26 leave out, instead (DDPM, eq. 12).
    """

    huber: float | None = None
    min_snr: float | None = None
    variational: bool = False

    def __call__(
        self, prediction: Tensor, target: Tensor, scheduler: NoiseScheduler, timesteps: Tensor, masks: Tensor | None
    ) -> Tensor:
        """() float32 of (b, c, h, w) float32; timesteps (b,); masks (b, 1, h, w) in [0, 1], where an error counts."""
        errors = F.mse_loss(prediction, target, reduction="none")  # b c h w
        if self.huber is not None:
            # |e| <= d: e^2;  beyond: d (2 |e| - d), which goes on with the same slope
            errors = 2 * F.huber_loss(prediction, target, reduction="none", delta=self.huber)
        losses = errors.mean(dim=(1, 2, 3))  # b
        if masks is not None:
            losses = (masks * errors).sum(dim=(1, 2, 3)) / (masks.sum(dim=(1, 2, 3)) * errors.shape[1])
        if self.min_snr is not None or self.variational:
            losses = losses * self.weights(scheduler, timesteps)
        return losses.mean()

    def weights(self, scheduler: NoiseScheduler, timesteps: Tensor) -> Tensor:
        """min(snr, gamma) of an error in x_0, as an error of what the network predicts (arXiv 2303.09556, 3.4), (b,).
        An error in epsilon is snr times, one in the velocity snr + 1 times that in x_0. `variational`: nats, of an
        error in epsilon beta^2 / (2 sigma^2 alpha (1 - alpha-bar)) with sigma^2 = beta."""
        alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alpha_bar / (1 - alpha_bar)
        of_clean = {"sample": 1, "epsilon": snr, "v_prediction": snr + 1}[scheduler.config.prediction_type]
        if self.variational:  # alpha-bar_t / alpha_t = alpha-bar_{t-1}
            beta, previous = scheduler.betas.to(timesteps.device)[timesteps], scheduler.alpha_bar(timesteps - 1)
            return previous.flatten().to(alpha_bar) * beta / (2 * (1 - alpha_bar) ** 2) / of_clean
        return snr.clamp(max=self.min_snr) / of_clean


def weighted_loss(model: StableDiffusion, batch: Batch, measure: DiffusionLoss, **options: Any) -> Tensor:
    """`minti.textual_inversion.batch_loss` with another measure, () float32. `options`: of `encode_prompt`."""
    context, timesteps = model.encode_prompt(batch.prompts, **options), batch.timesteps
    noisy_latents = model.scheduler.add_noise(batch.latents, batch.noise, timesteps)
    prediction = model.unet(noisy_latents, timesteps, context).float()
    target = model.scheduler.target(batch.latents, batch.noise, timesteps).float()
    return measure(prediction, target, model.scheduler, timesteps, getattr(batch, "masks", None))
