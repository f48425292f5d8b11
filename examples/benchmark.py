"""Times minti beside the diffusers recipe and OpenVINO: in turns, each case in a fresh process, on the same weights.

    python examples/benchmark.py                          # SD v1.4's full size: minutes per case, 16 GB of memory
    python examples/benchmark.py --toybox --quick         # two minutes on two cores
    python examples/benchmark.py --dtype bfloat16 --device cuda
    python examples/benchmark.py --libraries minti openvino --only denoising picture short

Needs diffusers and peft (`pip install -e '.[test]'`); with `pip install openvino` it times, too, a minti whose UNet
OpenVINO computes. Prints a table of medians, their spread, and how many times minti's seconds the others need; and a
line of JSON.
"""

from __future__ import annotations

from support.command_line import run

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import minti
from minti.utils import replacing

LIBRARIES = ("minti", "diffusers", "openvino")
HERE = Path(__file__).resolve().parent
FIRST_PICTURE = {
    "minti": "import minti; m = minti.StableDiffusion.from_pretrained(); minti.sample(m, 'a toy', sampler='ddim')",
    "diffusers": (
        "import torch, diffusers; p = diffusers.StableDiffusionPipeline.from_pretrained("
        "{model!r}, safety_checker=None, torch_dtype=torch.float32); "
        "p.scheduler = diffusers.DDIMScheduler.from_config(p.scheduler.config); p('a toy')"
    ),
}
IMPORT = {"minti": "import minti", "diffusers": "from diffusers import StableDiffusionPipeline, DDIMScheduler"}


def write_full_size_model(folder: Path, seed: int) -> Path:
    """SD v1.4's networks with random weights, and a tokenizer of the right size."""
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from minti.configs import TextConfig
    from minti.unet import UNet, UNetConfig
    from minti.vae import VAE, VAEConfig

    shutil.copytree(minti.TOYBOX, folder, ignore=shutil.ignore_patterns("*.safetensors", "evaluation"))
    torch.manual_seed(seed)
    text_config = {**vars(TextConfig()), "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    for part, name, build, config in (
        ("unet", "diffusion_pytorch_model", lambda: UNet(UNetConfig()), vars(UNetConfig())),
        ("vae", "diffusion_pytorch_model", lambda: VAE(VAEConfig()), vars(VAEConfig())),
        ("text_encoder", "model", lambda: CLIPTextModel(CLIPTextConfig(**text_config)), text_config),
    ):
        if part == "vae":
            levels = len(config["block_out_channels"])
            kinds = {
                "down_block_types": ["DownEncoderBlock2D"] * levels,
                "up_block_types": ["UpDecoderBlock2D"] * levels,
            }
            config = {**config, **kinds, "sample_size": 512}
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file(build().state_dict(), folder / part / f"{name}.safetensors", metadata={"format": "pt"})

    path = folder / "tokenizer"
    (path / "tokenizer.json").unlink(missing_ok=True)
    vocab = list(json.loads((path / "vocab.json").read_text()))[:-2]
    vocab += [f"<unused-{i}>" for i in range(49406 - len(vocab))] + ["<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))
    return folder


def worker(code_or_case: str | dict[str, object]) -> tuple[dict, float]:
    """Runs code, or a case of `support.benchmark_cases`, in a fresh process: what it printed, and its wall time."""
    if isinstance(code_or_case, dict):
        command = [sys.executable, "-m", "support.benchmark_cases", json.dumps(code_or_case)]
    else:
        command = [sys.executable, "-c", code_or_case]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    wall = time.perf_counter() - start
    if done.returncode:
        raise ValueError(f"a case failed: {done.stderr.strip().splitlines()[-1]}")
    return (json.loads(done.stdout.splitlines()[-1]) if isinstance(code_or_case, dict) else {}), wall


def matrix_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """The machine's matrix products, in GFLOP/s: what no network can pass."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9


def compare(name: str, repeats: int, measure: Callable[[str], dict], libraries: Sequence[str]) -> dict:
    """Alternates between the libraries; medians, extremes, and the ratio of each to minti."""
    runs: dict[str, list[dict]] = {library: [] for library in libraries}
    for _ in range(repeats):
        for library in libraries:
            runs[library].append(measure(library))
    row: dict[str, Any] = {"case": name}
    for library, results in runs.items():
        seconds = [number for result in results for number in result.pop("seconds")]
        own = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
        row[library] = results[-1] | own | {"memory": max(result.get("memory", 0) for result in results)}
        row[library]["ratio"] = own["median"] / row["minti"]["median"]
    print("| " + " | ".join([name, *cells(row)]) + " |", flush=True)
    if own := row.get("openvino"):
        print(
            f"  OpenVINO, before that: conversion {own['conversion']:.1f} s, compilation {own['compilation']:.1f} s",
            end="",
        )
        print(f"; latents differ by {own['difference']:.2g} of their spread at most" if "difference" in own else "")
    return row


def cells(row: dict[str, Any]) -> Iterator[str]:
    """The cells of a row: seconds of all libraries, how many times minti's the others take, memory of all."""
    every = [row.get(library) for library in LIBRARIES]
    yield from (f"{own['median']:.3f} ({own['least']:.3f}-{own['most']:.3f})" if own else "" for own in every)
    yield from (f"{own['ratio']:.2f}" if own else "" for own in every[1:])
    yield from (f"{own['memory'] / 2**30:.1f}" if own and own["memory"] else "" for own in every)


def installed(names: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The libraries that can be timed; says why where OpenVINO cannot."""
    why = None
    if importlib.util.find_spec("openvino") is None:
        why = "it is not installed (pip install openvino)"
    elif args.device != "cpu" or args.dtype == "float16":
        why = f"it is timed on the cpu, in float32 and bfloat16; this is {args.device}, {args.dtype}"
    if why and "openvino" in names:
        print(f"without OpenVINO: {why}")
    return [name for name in names if name != "openvino" or why is None]


def cases(args: argparse.Namespace, model: str) -> list[tuple[str, Callable[[str], dict], Sequence[str]]]:
    """What is timed: its name, a library's measure, and the libraries that can do it."""

    def job(kind: str, batch: int, count: int, **more: object) -> Callable[[str], dict]:
        fixed = {"case": kind, "folder": model, "device": args.device, "dtype": args.dtype}
        return lambda library: worker(fixed | more | {"library": library, "batch": batch, "count": count})[0]

    def whole(count: int) -> Callable[[str], dict]:
        fixed = {"case": "run", "folder": model, "device": args.device, "dtype": args.dtype}

        def measure(library: str) -> dict:
            result, wall = worker(fixed | {"library": library, "batch": 1, "count": count})
            return result | {"seconds": [wall]}

        return measure

    def code(texts: dict[str, str]) -> Callable[[str], dict]:
        return lambda library: {"seconds": [worker(texts[library].replace("{model!r}", repr(str(minti.TOYBOX))))[1]]}

    steps = 5 if args.toybox else 2
    both, three = ("minti", "diffusers"), LIBRARIES
    found: list[tuple[str, Callable[[str], dict], Sequence[str]]] = [
        ("training step, batch 1", job("train", 1, steps), both),
        ("guided denoising step, batch 1", job("denoise", 1, steps), three),
        ("import", code(IMPORT), both),
        ("start to first toybox picture", code(FIRST_PICTURE), both),
    ]
    if not args.quick:
        found += [
            ("load", job("load", 1, 1), both),
            (f"run of {10 * steps} steps from a cold start", whole(10 * steps), both),
            ("picture of 20 steps", job("picture", 1, 1), three),
            ("guided short step (DeepCache)", job("short_step", 1, steps), ("minti",)),
            ("lean picture (DeepCache in minti alone)", job("lean_picture", 1, 1), ("minti", "openvino")),
            ("LoRA training step, batch 1", job("lora", 1, steps), both),
            ("training step, checkpointing in both", job("train", 1, steps, checkpointing=True), both),
        ]
        batches = [4, 16, 64] if args.toybox else [4] if args.device.startswith("cuda") else []
        for batch in batches:
            found.append((f"training step, batch {batch}", job("train", batch, steps), both))
            found.append((f"picture of 20 steps, batch {batch}", job("picture", batch, 1), both))
    return found


def main() -> None:
    """All cases, a table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toybox", action="store_true", help="the bundled model instead of SD v1.4's size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=2, help="fresh processes per case and library")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: with --toybox, two minutes")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases whose name contains one of these words")
    libraries_help = "minti, and what to time beside it; OpenVINO takes part in some cases, where it is installed"
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES, help=libraries_help)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for benchmark.json")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--model", help="a model folder to time instead of random weights")
    args = parser.parse_args()

    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    repeats = 1 if args.quick else args.repeats
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or (
            str(minti.TOYBOX) if args.toybox else str(write_full_size_model(Path(temporary) / "model", args.seed))
        )
        rate = matrix_rate(args.device, getattr(torch, args.dtype))
        machine = {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dtype": args.dtype,
            "matrix_gflops": round(rate),
        }
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        libraries = installed(args.libraries, args)
        titles = [f"{library}, s (range)" for library in LIBRARIES] + [
            f"{library} / minti" for library in LIBRARIES[1:]
        ]
        titles += [f"{library}, GiB" for library in LIBRARIES]
        print(f"| case | {' | '.join(titles)} |\n{'|---' * (1 + len(titles))}|")

        rows = [
            compare(name, repeats, measure, chosen)
            for name, measure, could in cases(args, model)
            if not args.only or any(word in name for word in args.only)
            if "minti" in (chosen := [library for library in could if library in libraries])
        ]
    result = json.dumps({"machine": machine, "rows": rows})
    with replacing(args.output / "benchmark.json") as temporary:
        temporary.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    run(main)
