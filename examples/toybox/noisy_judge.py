"""A judge of noisy latents: classifier guidance asks it at every timestep, and it never measures (arXiv 2105.05233, 4).

    p(y | x_t, t), the answers of `networks.Judge` from the latents as they are in the middle of a run

Who guides must not judge: what guidance has reached is measured by the toybox's CLIP, which has not seen this network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import minti
from minti.guidance.conditions import in_interval
from minti.guidance.gradients import Guidance, classifier_guidance
from minti.layers import timestep_embedding
from minti.sampling import conditional
from networks import Judge
from world import COLOURS, SHAPES

FILE = Path("evaluation") / "noisy_judge.safetensors"
HEADS = {"main_0": tuple(COLOURS), "shape_0": SHAPES}


class NoisyJudge(nn.Module):
    """Four strided or plain convolutions and two layers, each shifted by what the timestep says."""

    WIDTHS, STRIDES = (32, 64, 64, 96, 96), (1, 2, 1, 2, 1)  # 16 -> 8 -> 4

    def __init__(self, channels: int = 8, hidden: int = 128):
        super().__init__()
        self.answers = {name: values for name, values in Judge().answers.items() if not name.endswith("_1")}
        widths = (channels, *self.WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out))
            for c_in, c_out, stride in zip(widths, widths[1:], self.STRIDES)
        )
        self.times = nn.ModuleList(nn.Linear(32, 2 * width) for width in self.WIDTHS)
        self.hidden = nn.Sequential(nn.Linear(16 * widths[-1], hidden), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(values)) for name, values in self.answers.items()})

    def forward(self, latents: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """Scaled latents (b, 8, 16, 16) at timesteps (b,) -> {head: (b, number of answers)} logits."""
        x, time = latents, timestep_embedding(timesteps, 32)
        for convolution, shift_and_scale in zip(self.convolutions, self.times):
            shift, scale = shift_and_scale(time)[:, :, None, None].chunk(2, dim=1)
            x = nn.functional.silu(convolution(x) * (1 + scale) + shift)
        features = self.hidden(x.flatten(1))
        return {name: head(features) for name, head in self.heads.items()}

    def log_probability(self, latents: Tensor, t: int, wanted: Mapping[str, str]) -> Tensor:
        """log p(y | x_t, t) of {head: answer}, taken as independent, (b,)."""
        logits = self(latents, torch.full((len(latents),), t, device=latents.device))
        chosen = [
            logits[head].log_softmax(dim=1)[:, self.answers[head].index(answer)] for head, answer in wanted.items()
        ]
        return torch.stack(chosen).sum(dim=0)


def denoised(model: minti.StableDiffusion) -> Callable[[Tensor, int], Tensor]:
    """Noisy latents (b, c, h, w) and their timestep to the clean ones that the UNet predicts, unprompted."""
    context = model.encode_prompt("")

    def clean(latents: Tensor, t: int) -> Tensor:
        output = conditional(model.unet, context.expand(len(latents), -1, -1))(latents, t)
        return model.scheduler.clean_and_noise(output, latents, t)[0]

    return clean


def head_of(wish: str) -> str:
    """The judge's head that knows the answer."""
    return next(head for head, answers in HEADS.items() if wish in answers)


def by_noisy_judge(
    model: minti.StableDiffusion, judge: NoisyJudge, wish: str, scale: float, below: int, through_unet: bool = False
) -> Guidance:
    """Classifier guidance in the timesteps below a limit: where there is only noise, the judge can but guess.

    Through the UNet it is asked about x_0(x_t): a classifier of noisy latents all the same. The Jacobian in between is
    sqrt(alpha-bar) / (1 - alpha-bar) cov(x_0 | x_t), which bends the gradient to where pictures do differ."""
    clean = denoised(model) if through_unet else lambda latents, t: latents

    def log_probability(latents: Tensor, t: int) -> Tensor:
        return judge.log_probability(clean(latents, t), t, {head_of(wish): wish})

    guidance = classifier_guidance(model.scheduler, log_probability, scale)
    return lambda predict: in_interval((0, below - 1), guidance(predict), predict)


def load_noisy_judge(model_folder: str | Path) -> NoisyJudge:
    """The one that ships with the toybox. Raises FileNotFoundError: the model has none; only the toybox does."""
    path = Path(model_folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; only the toybox has a judge of noisy latents")
    judge = NoisyJudge()
    judge.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    )
    return judge.eval().requires_grad_(False)
