"""A classifier of noisy latents, for classifier guidance (arXiv 2105.05233, section 4).

    p(y | x_t, t), with the classes of `networks.Judge`

It guides and does not evaluate: a classifier is fooled by its own gradient. Guided samples are evaluated by the
toybox's CLIP, which is independent of this network.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import minti
from minti.guidance.conditions import in_interval
from minti.guidance.gradients import Guidance, classifier_guidance
from minti.layers import timestep_embedding
from minti.sampling import conditional
from networks import Judge, loaded
from world import COLOURS, SHAPES

FILE = Path("evaluation") / "noisy_judge.safetensors"
HEADS = {"main_0": tuple(COLOURS), "shape_0": SHAPES}


class NoisyJudge(nn.Module):
    """The classifier: five convolutions, each scaled and shifted by the timestep embedding, and two linear layers."""

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
        """Scaled latents (b, 8, 16, 16) at timesteps (b,) -> {head: (b, number of classes)} logits."""
        x, time = latents, timestep_embedding(timesteps, 32)
        for convolution, shift_and_scale in zip(self.convolutions, self.times):
            shift, scale = shift_and_scale(time)[:, :, None, None].chunk(2, dim=1)
            x = nn.functional.silu(convolution(x) * (1 + scale) + shift)
        features = self.hidden(x.flatten(1))
        return {name: head(features) for name, head in self.heads.items()}

    def log_probability(self, latents: Tensor, t: int, wanted: Mapping[str, str]) -> Tensor:
        """log p(y | x_t, t) of the target classes {head: class}, taken as independent: (b,)."""
        logits = self(latents, torch.full((len(latents),), t, device=latents.device))
        chosen = [
            logits[head].log_softmax(dim=1)[:, self.answers[head].index(answer)] for head, answer in wanted.items()
        ]
        return torch.stack(chosen).sum(dim=0)

    def log_probability_of_others(self, latents: Tensor, t: int, avoided: Mapping[str, str]) -> Tensor:
        """log(1 - p(y | x_t, t)) of one class, {head: class}, as the log of the sum of all others: (b,)."""
        ((head, answer),) = avoided.items()
        logits = self(latents, torch.full((len(latents),), t, device=latents.device))[head]
        others = [i for i, name in enumerate(self.answers[head]) if name != answer]
        return logits.log_softmax(dim=1)[:, others].logsumexp(dim=1)


def denoised(model: minti.StableDiffusion) -> Callable[[Tensor, int], Tensor]:
    """The UNet's prediction of x_0 without a prompt, as a function of noisy latents (b, c, h, w) and a timestep."""
    context = model.encode_prompt("")

    def clean(latents: Tensor, t: int) -> Tensor:
        output = conditional(model.unet, context.expand(len(latents), -1, -1))(latents, t)
        return model.scheduler.clean_and_noise(output, latents, t)[0]

    return clean


def head_of(wish: str) -> str:
    """The classifier's head that has this target class."""
    return next(head for head, answers in HEADS.items() if wish in answers)


def by_noisy_judge(
    model: minti.StableDiffusion,
    judge: NoisyJudge,
    wish: str,
    scale: float,
    below: int,
    through_unet: bool = False,
    away: bool = False,
) -> Guidance:
    """Classifier guidance towards a target class, `wish`, in the timesteps below a limit (there is only noise above);
    or `away` from it, by log(1 - p(y | x_t)): policy guidance (`003`, 37).

    `through_unet`: classify the UNet's prediction x_0(x_t) instead of x_t, and differentiate through the UNet. Its
    Jacobian, sqrt(alpha-bar) / (1 - alpha-bar) cov(x_0 | x_t), turns the gradient towards directions in which images
    vary."""
    clean = denoised(model) if through_unet else lambda latents, t: latents

    def log_probability(latents: Tensor, t: int) -> Tensor:
        answer = judge.log_probability_of_others if away else judge.log_probability
        return answer(clean(latents, t), t, {head_of(wish): wish})

    guidance = classifier_guidance(model.scheduler, log_probability, scale)
    return lambda predict: in_interval((0, below - 1), guidance(predict), predict)


def load_noisy_judge(model_folder: str | Path) -> NoisyJudge:
    """The classifier of noisy latents that is bundled with the toybox. Raises FileNotFoundError: the model has none."""
    return loaded(NoisyJudge(), Path(model_folder) / FILE)
