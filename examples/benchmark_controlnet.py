"""Times a training step of a ControlNet beside diffusers', at SD v1.4's size with random weights, and its peak memory.

    python examples/benchmark_controlnet.py

Both take turns in one process and share their weights: what is timed is forward and backward at batch 1, 512 × 512 in
float32; the optimizer's step is torch's own in both. Needs `pip install -e '.[test]'`.
"""

from __future__ import annotations

from support.command_line import run, whole

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

from minti.adapters.controlnet import ControlNet, ControlNetConfig, ControlNetwork
from minti.unet import UNet, UNetConfig


def twins() -> tuple[UNet, ControlNet, diffusers.UNet2DConditionModel, diffusers.ControlNetModel]:
    """minti's networks and diffusers', with the same tensors; the UNets frozen."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64).requires_grad_(False)
    control = diffusers.ControlNetModel.from_unet(unet).requires_grad_(True)
    with torch.device("meta"):
        ours, copy = UNet(UNetConfig()), ControlNetwork(ControlNetConfig())
    ours.load_state_dict(unet.state_dict(), assign=True)
    copy.load_state_dict(control.state_dict(), assign=True)
    return ours.requires_grad_(False), ControlNet(copy.requires_grad_(True)), unet, control


def measured(step: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[float, float, float]:
    """CPU seconds of a step, which other processes hardly lengthen; the most memory held meanwhile, in GB; the loss."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    start = time.process_time()
    loss = step()
    loss.backward()
    seconds = time.process_time() - start
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    for parameter in parameters:
        parameter.grad = None
    return seconds, int(line.split()[1]) * 1024 / 1e9, loss.item()


def main() -> None:
    """A row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=whole(1), default=3)
    args = parser.parse_args()
    ours, part, unet, control = twins()
    latents, noise, context = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    part.hint, t = torch.rand(1, 3, 512, 512), torch.tensor([601])

    def theirs() -> Tensor:
        down, mid = control(latents, t, context, part.hint, return_dict=False)
        answer = unet(latents, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        return F.mse_loss(answer.sample, noise)

    def mine() -> Tensor:
        with part.attached(SimpleNamespace(unet=ours)):
            return F.mse_loss(ours(latents, t, context), noise)

    both = {"minti": (mine, list(part.parameters())), "diffusers": (theirs, list(control.parameters()))}
    results = {name: [] for name in both}
    for repeat in range(args.repeats + 1):
        for name in list(both)[:: 1 if repeat % 2 else -1]:
            results[name].append(measured(*both[name]))
    print("| | CPU seconds | peak, GB | loss |\n|---|---|---|---|")
    for name, rows in results.items():
        seconds, peaks, losses = zip(*rows[1:])  # the first warms up
        print(f"| {name} | {median(seconds):.1f} | {median(peaks):.2f} | {losses[-1]} |")


if __name__ == "__main__":
    run(main)
