"""Checks of settings, words, files and training steps: each raises an error in one clear line that says what to do.

The core calls them by name (`utils.check`) and runs without them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minti.runs.messages import check_choice, short_repr
from minti.runs.word_checks import check_templates, check_text, check_vectors
from minti.scheduler import SPACINGS, VARIANCES
from minti.training import Trainer, TrainingError

OVERFLOW = "the weights are finite, so they have overflowed; try bfloat16 or float32"
MAX_SKIPPED = 20  # float16 steps: torch's gradient scaler starts at 2^16, and each skipped step halves it


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Raises ValueError: a field is no number from `least` to `most`, a whole one where these are (or None, where that
    is its default); names the field."""
    for name in names:
        value, kinds = getattr(config, name), int if isinstance(least, int) else (int, float)
        if value is None and "None" in str(type(config).__dataclass_fields__[name].type):
            continue
        if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
            kind = "a whole number" if kinds is int else "a number"
            raise ValueError(f"{name} = {short_repr(value)}; expected {kind} from {least:,} to {most:,}")


def variance(value: str | float) -> None:
    """Raises ValueError: neither the name of a variance of DDPM's steps nor a number from 0 to 1."""
    if isinstance(value, bool) or not (0 <= value <= 1 if isinstance(value, int | float) else value in VARIANCES):
        raise ValueError(
            f"unknown variance {short_repr(value)}; expected one of {', '.join(VARIANCES)}, or a number from 0 to 1"
        )


def config(settings: Any) -> None:
    """Raises ValueError: a setting that `TextualInversionConfig` cannot have; names it. Its kinds check their own."""
    check_choice("row_update", settings.row_update, ("new_rows", "restore"))
    check_range(settings, 1, 10**9, "steps", "max_steps", "batch_size", "gradient_accumulation")
    check_range(settings, 1, 1000, "num_vectors")  # each becomes a token before it is found not to fit
    check_range(settings, 0, 2**63 - 1, "seed")
    check_range(settings, 0.0, 1e6, "learning_rate", "weight_decay")
    check_range(settings, 1e-12, 1e12, "max_gradient_norm")
    if settings.templates is not None:
        check_templates(settings.templates)
    if isinstance(token := settings.initializer_token, Tensor):
        check_vectors(token, "initializer_token")
        object.__setattr__(settings, "initializer_token", token.detach().clone())  # a word's may go on learning
    elif not isinstance(token, str | Path | None):
        raise ValueError(f"initializer_token = {short_repr(token)}; expected a word, a file, or vectors, (n, d)")
    check_text(settings.placeholder_token, "placeholder token")
    if not settings.placeholder_token.strip():
        raise ValueError(f"placeholder token {short_repr(settings.placeholder_token)} is empty; choose one word")


def step(trainer: Trainer, loss: float, norm: float, batches: Sequence[Any]) -> None:
    """Raises TrainingError: loss or gradient is not finite, beyond what float16's scaler can mend, or is zero."""
    at, scaler, first = f"step {trainer.number} of {trainer.adapter.name}", trainer.scaler, trainer.number == 1
    lower = f"try a lower learning rate (it is {trainer.optimizer.param_groups[0]['initial_lr']:g})"
    finite = math.isfinite(loss) and math.isfinite(norm)
    if not finite and not (scaler.is_enabled() and scaler.get_scale() > 2.0 ** (16 - MAX_SKIPPED)):
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        mend = f"{lower} or float32"
        if culprit := not_finite(trainer.model):  # from the beginning, or since it learns
            mend = f"so is {culprit}: {'' if first else f'{lower}, or '}fetch that file again"
        raise TrainingError(f"{what} at {at}, of {', '.join(map(described, batches))}; {mend}")
    if norm == 0:
        raise TrainingError(f"there is no gradient at {at}: {'nothing leads from it to the loss' if first else lower}")


def described(batch: Any) -> str:
    """A batch, or one of several kinds, in words."""
    if hasattr(batch, "indices"):
        return ", ".join(f"image {i} at timestep {t}" for i, t in zip(batch.indices, batch.timesteps.tolist()))
    instance, prior = getattr(batch, "instance", None), getattr(batch, "prior", None)
    if instance is None:
        return type(batch).__name__
    return described(instance) + (f", of the class {described(prior)}" if prior is not None else "")


def finite(model: Any, what: str, result: Tensor, otherwise: str = OVERFLOW) -> None:
    """Raises ValueError: a result is NaN or infinite; names the weight to blame, or else why `otherwise`."""
    if not is_finite(result):
        culprit = not_finite(model)
        why = f"so has {culprit}; fetch the file again, or use another" if culprit else otherwise
        raise ValueError(f"{what} have numbers that are not finite: {why}")


def not_finite(model: Any) -> str | None:
    """The first weight with a number that is NaN or infinite, such as "unet: conv_in.weight"; None without one."""
    for part in ("unet", "vae", "text_encoder"):
        network = getattr(model, part, None)  # a Trainer's model may be any network
        for name, weight in network.named_parameters() if network is not None else ():
            if not is_finite(weight):
                return f"{part}: {name}"
    return None


def is_finite(tensor: Tensor) -> bool:
    """The least and the greatest tell: both are NaN where one number is; and unlike `isfinite` they take no memory."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def heads(channels: int, heads: int) -> None:
    """Raises ValueError: channels do not divide into attention heads."""
    if channels % heads:
        raise ValueError(f"{channels} channels do not divide into {heads} attention heads")


def images(images: Any) -> None:
    """Raises ValueError: there are none, or as a tensor they are no pixels in [-1, 1]."""
    if len(images) == 0:
        raise ValueError("there are no images to learn from")
    if isinstance(images, Tensor) and (not images.is_floating_point() or images.abs().max() > 2):
        found = f"these are {str(images.dtype).removeprefix('torch.')} from {images.min():g} to {images.max():g}"
        raise ValueError(f"images as a tensor are numbers in [-1, 1], and {found}; see minti.images.from_bytes")


def contexts(context: Tensor, width: int, like: Tensor | None, name: str) -> None:
    """Raises ValueError: no prompt, contexts of another shape, or of another number than the prompts `like`."""
    if context.ndim != 3 or context.shape[-1] != width or not len(context):
        raise ValueError(f"contexts of shape {tuple(context.shape)}; expected (b, m, {width}), as of encode_prompt")
    if like is not None and len(context) not in (1, len(like)):
        raise ValueError(f"{len(context)} {name} for {len(like)} prompts; give one, or one for each")
    if like is not None and context.shape[1] != like.shape[1]:
        found = f"{name} of {context.shape[1]} tokens for prompts of {like.shape[1]}"
        raise ValueError(f"{found}; make them equally long, see minti.prompts.long_prompts.padded")


def run_length(steps: int, most: int, spacing: str) -> None:
    """Raises ValueError: a run of so many steps does not fit the schedule, or an unknown spacing."""
    if not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps = {short_repr(steps)}; expected 1 to {most}")
    check_choice("timestep spacing", spacing, SPACINGS)


def timesteps(t: Tensor, total: int) -> None:
    """Raises ValueError: timesteps that a schedule does not have."""
    if t.is_floating_point() or t.ndim > 1 or t.min() < -1 or t.max() >= total:
        found = (
            f"timesteps = {short_repr(t.tolist())}; the schedule has the whole numbers from -1 (clean) to {total - 1}"
        )
        raise ValueError(f"{found}; use fewer steps, another spacing, or a tensor of shape () or (b,)")
