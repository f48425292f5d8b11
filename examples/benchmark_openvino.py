"""Times the UNet of SD v1.4's size: minti, minti with deep features kept, and OpenVINO, in turns in one process.

    OMP_NUM_THREADS=1 python examples/benchmark_openvino.py --dtypes bfloat16 float32 --rounds 3

Random weights, 512 x 512; processor seconds, which with one thread hardly depend on what else the machine does. Prints
medians, and what pictures take that are made of such steps: their sum, without text encoder and decoding.
Needs `pip install openvino`.
"""

from __future__ import annotations

from support.command_line import DTYPES, run, whole
from support.host_memory import keep_freed_memory
from support.openvino_engine import OpenVINO

import argparse
import time
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor

from minti.speed.deep_cache import DeepCache
from minti.unet import UNet, UNetConfig

LEAN = {"steps": 15, "low": 250}
WAYS: list[tuple[str, dict[str, int]]] = [
    ("OpenVINO", {"steps": 20}),
    ("OpenVINO", LEAN),
    ("minti", {"steps": 20}),
    ("minti", LEAN),
    ("minti", {"steps": 20, "every": 3, "low": 250}),
    ("minti", LEAN | {"every": 3}),
    ("minti", {"steps": 12, "every": 2, "low": 250}),
    ("minti", {"steps": 10, "every": 2, "low": 250}),
]
Times = dict[tuple[str, int], list[float]]  # (way, batch) to seconds


def inputs(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What the UNet takes; a batch of 2 is one guided picture."""
    generator = torch.Generator().manual_seed(batch)
    latents, context = (torch.randn(batch, *size, generator=generator) for size in ((4, 64, 64), (77, 768)))
    return latents.to(dtype), torch.full((batch,), 500), context.to(dtype)


@torch.no_grad()
def timed(unet: UNet, dtype: torch.dtype, rounds: int) -> Times:
    """Every way in turn, of a guided step and of one without guidance; a first round is not counted."""
    model, engine = SimpleNamespace(unet=unet, dtype=dtype, device=torch.device("cpu")), OpenVINO()
    times: Times = {}

    def add(way: str, example: tuple[Tensor, ...]) -> Tensor:
        begin = time.process_time()
        answer = unet(*example)
        times.setdefault((way, len(example[0])), []).append(time.process_time() - begin)
        return answer

    with engine.attached(model):
        compiled = unet.forward  # it remembers what it has compiled
    for turn in range(1 + rounds):
        for batch in (2, 1):
            example = inputs(batch, dtype)
            ours = add("minti", example)
            unet.forward = compiled
            theirs = add("OpenVINO", example)
            del unet.forward
            with DeepCache(3).attached(model):
                unet(*example)  # keeps
                add("short", example)
                add("short", example)
            if turn == 0:
                off = ((ours - theirs).float().abs().max() / ours.float().std()).item()
                print(f"batch {batch}: answers differ by {off:.1g} of their spread at most", flush=True)
        if turn == 0:
            print("OpenVINO, both batches: " + ", ".join(f"{what} {s:.0f} s" for what, s in engine.seconds.items()))
            times.clear()
        print(f"round {turn}", {key: [round(s, 2) for s in found] for key, found in times.items()}, flush=True)
    return times


def picture(times: Times, way: str, steps: int, every: int = 1, low: int = 0) -> float:
    """The sum of a picture's steps; DeepCache begins afresh where guidance, from timestep `low` up, ends."""
    guided = sum(1000 * i // steps >= low for i in range(steps))
    total = 0.0
    for batch, count in ((2, guided), (1, steps - guided)):
        long = -(-count // every)
        total += long * median(times[way, batch])
        total += (count - long) * median(times["short", batch]) if count > long else 0
    return total


def main() -> None:
    """A table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=whole(1), default=3)
    args = parser.parse_args()
    keep_freed_memory()
    for name in args.dtypes:
        torch.manual_seed(0)
        unet = UNet(UNetConfig()).eval().requires_grad_(False).to(DTYPES[name])
        times = timed(unet, DTYPES[name], args.rounds)
        print(f"{name}, {torch.get_num_threads()} threads")
        print("| step | guided, s (range) | without, s (range) |\n|---|---|---|")
        for way in ("minti", "short", "OpenVINO"):
            both = (times[way, batch] for batch in (2, 1))
            print(f"| {way} | " + " | ".join(f"{median(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in both) + " |")
        usual = picture(times, "OpenVINO", 20)
        for way, how in WAYS:
            seconds = picture(times, way, **how)
            print(f"{way}, {how}: {seconds:.1f} s, {seconds / usual:.2f} of OpenVINO's 20 steps", flush=True)


if __name__ == "__main__":
    run(main)
