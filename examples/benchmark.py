"""Times minti beside the diffusers recipe: alternating, each case in a fresh process, on the same random weights.

    python examples/benchmark.py                          # SD v1.4's full size: minutes per case, 16 GB of memory
    python examples/benchmark.py --toybox --quick         # two minutes on two cores
    python examples/benchmark.py --dtype bfloat16 --device cuda

Needs diffusers and peft (`pip install -e '.[test]'`). Prints a table of medians, their spread, and ratios above 1 where
minti is faster or smaller; and one line of JSON.
"""

from __future__ import annotations

from support.command_line import run

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import minti
from minti.machine.files import replacing

LIBRARIES = ("minti", "diffusers")
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

    from minti.checkpoints.text_encoder import TextConfig
    from minti.networks.unet import UNet, UNetConfig
    from minti.networks.vae import VAE, VAEConfig

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


def compare(name: str, repeats: int, measure: Callable[[str], dict]) -> dict:
    """Alternates between the libraries; medians, extremes, and the ratio of diffusers to minti."""
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    memory = dict.fromkeys(LIBRARIES, 0)
    for _ in range(repeats):
        for library in LIBRARIES:
            result = measure(library)
            seconds[library] += result["seconds"]
            memory[library] = max(memory[library], result.get("memory", 0))
    row: dict[str, object] = {"case": name}
    for library in LIBRARIES:
        row[library] = {
            "median": statistics.median(seconds[library]),
            "least": min(seconds[library]),
            "most": max(seconds[library]),
            "memory": memory[library],
        }
    row["ratio"] = row["diffusers"]["median"] / row["minti"]["median"]
    if all(memory.values()):
        row["memory_ratio"] = memory["minti"] / memory["diffusers"]
    cells = [f"{row[lib]['median']:.3f} ({row[lib]['least']:.3f}-{row[lib]['most']:.3f})" for lib in LIBRARIES]
    shown = [f"{memory[lib] / 2**30:.1f}" for lib in LIBRARIES] if all(memory.values()) else ["", ""]
    smaller = f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else ""
    print(f"| {name} | {cells[0]} | {cells[1]} | {row['ratio']:.2f} | {' | '.join(shown)} | {smaller} |", flush=True)
    return row


def main() -> None:
    """All cases, a table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toybox", action="store_true", help="the bundled model instead of SD v1.4's size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=2, help="fresh processes per case and library")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: with --toybox, two minutes")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases whose name contains one of these words")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for benchmark.json")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--model", help="a model folder to time instead of random weights")
    args = parser.parse_args()

    os.environ |= {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "HF_HUB_OFFLINE": "1"}
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
        print("| case | minti, s (range) | diffusers, s (range) | faster | minti, GiB | diffusers, GiB | memory |")
        print("|---|---|---|---|---|---|---|")

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
            return lambda library: {
                "seconds": [worker(texts[library].replace("{model!r}", repr(str(minti.TOYBOX))))[1]]
            }

        steps = 5 if args.toybox else 2
        cases: list[tuple[str, Callable[[str], dict]]] = [
            ("training step, batch 1", job("train", 1, steps)),
            ("guided denoising step, batch 1", job("denoise", 1, steps)),
            ("import", code(IMPORT)),
            ("start to first toybox picture", code(FIRST_PICTURE)),
        ]
        if not args.quick:
            cases += [
                ("load", job("load", 1, 1)),
                (f"run of {10 * steps} steps from a cold start", whole(10 * steps)),
                ("picture of 20 steps", job("picture", 1, 1)),
                ("LoRA training step, batch 1", job("lora", 1, steps)),
                ("training step, checkpointing in both", job("train", 1, steps, checkpointing=True)),
            ]
            batches = [4, 16, 64] if args.toybox else [4] if args.device.startswith("cuda") else []
            for batch in batches:
                cases.append((f"training step, batch {batch}", job("train", batch, steps)))
                cases.append((f"picture of 20 steps, batch {batch}", job("picture", batch, 1)))
        rows = [
            compare(name, repeats, measure)
            for name, measure in cases
            if not args.only or any(word in name for word in args.only)
        ]
    result = json.dumps({"machine": machine, "rows": rows})
    with replacing(args.output / "benchmark.json") as temporary:
        temporary.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    run(main)
