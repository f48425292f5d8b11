"""One training stage: a loop with AdamW, a cosine learning rate, a running average, and a checkpoint to resume from."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minti.utils import replacing


def train_stage(
    name: str,
    folder: Path,
    module: nn.Module,
    loss_fn: Callable[[int, torch.Generator], Tensor],
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.0,
    look: Callable[[nn.Module], object] | None = None,
    save_every: float = 60.0,
    look_every: float = 300.0,
) -> None:
    """Trains `module` in place; an interrupted stage goes on where its last checkpoint left it.

    Args:
        name: names the checkpoint `folder/name.pt` and the progress bar.
        loss_fn: (step, generator) -> loss; all randomness from the generator.
        steps: how many in all; the learning rate warms up over the first 2 % and falls to zero on a cosine.
        ema_decay: the decay of a running average of the parameters, which the module holds in the end; 0 for none.
        look: draws sample pictures; called with the module while it holds the averaged parameters.
        save_every, look_every: seconds between checkpoints, and between looks.

    Raises:
        ValueError: the checkpoint is of a stage of other steps or another learning rate, such as a trial run's.
    """
    path, stage = folder / f"{name}.pt", {"steps": steps, "learning_rate": learning_rate}
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-4, fused=True)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (0.02 * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location=next(module.parameters()).device)
        check_stage(path, saved, stage)
        module.load_state_dict(saved["module"])
        average, start = saved["average"], saved["step"]
        if start < steps:
            optimizer.load_state_dict(saved["optimizer"])

    def show() -> None:
        if look is not None:
            current = {key: value.clone() for key, value in module.state_dict().items()}
            module.load_state_dict(average)
            look(module.eval())
            module.train().load_state_dict(current)

    module.train()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=1 if sys.stderr.isatty() else 30)
    saved_at = shown_at = time.monotonic()
    smooth = None
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step)
        generator = torch.Generator().manual_seed(step)  # a resumed stage draws what it would have drawn
        loss = loss_fn(step, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(ema_decay, (step + 1) / (step + 10)) if ema_decay else 0.0
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)
            else:
                average[key].copy_(value)
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        last, now = step + 1 == steps, time.monotonic()
        if last or now - saved_at > save_every:
            saved_at = now
            state = {"module": module.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            save_atomically(state | {"step": step + 1, "stage": stage}, path)
        if last or now - shown_at > look_every:
            shown_at = now
            show()
    module.load_state_dict(average)
    module.eval()


def check_stage(path: Path, saved: dict[str, Any], stage: dict[str, float]) -> None:
    """Refuses another stage's checkpoint: its cosine has ended elsewhere, and a finished one would pass for trained.

    Raises:
        ValueError: it is another's, or does not say whose; names both.
    """
    told = "{steps} steps at learning rate {learning_rate}".format_map
    if (was := saved.get("stage")) != stage:
        raise ValueError(
            f"{path} is the checkpoint of another run, of {told(was) if was else 'unknown length'}; this one is of "
            f"{told(stage)}. Give another --work folder, or delete the file"
        )


def save_atomically(content: object, path: Path) -> None:
    """Writes a checkpoint; an interruption leaves the former one whole."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def batches(count: int, size: int, step: int) -> Tensor:
    """Indices of batch number `step` when `count` items are shuffled anew for every pass, (size,)."""
    per_pass = count // size
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 + step // per_pass))
    return order[(step % per_pass) * size :][:size]
