"""Benchmarks minti against the diffusers recipe and OpenVINO: in turns, each case in a fresh process, same weights.

    python examples/benchmark.py                          # SD v1.4's full size: minutes per case, 16 GB of memory
    python examples/benchmark.py --toybox --quick         # two minutes on two cores
    python examples/benchmark.py --only training denoising --dtype bfloat16 --device cuda
    python examples/benchmark.py --only unet image --libraries minti openvino

Needs diffusers and peft (`pip install -e '.[test]'`); with `pip install openvino` it also times minti with the UNet
computed by OpenVINO. Prints a table of medians, their range, and each time relative to minti's; and a line of JSON.
"""

from support.command_line import check_device, make_output, run, whole
from support.option_types import filled

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import minti
from minti.adapters.controlnet import ControlNet
from minti.adapters.ip_adapter import IPAdapter, save_ip_adapter
from minti.runs.files import replacing

LIBRARIES = ("minti", "diffusers", "openvino")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: as printed; `--only` looks for words in it.
        method: how to build and run it, in `support/benchmark_cases.py` for each library.
        libraries: those that can do it.
        count: how many times it is timed in a process, after a `warm_up` that is not.
        whole: the time of the whole process counts, with its start and imports.
        quick: part of `--quick`.
        options: of the method.
    """

    name: str
    method: str
    libraries: tuple[str, ...] = ("minti", "diffusers")
    count: int = 1
    batch: int = 1
    warm_up: bool = True
    whole: bool = False
    quick: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def cases(args: argparse.Namespace) -> list[Case]:
    """All cases."""
    n = 5 if args.toybox else 2
    controlnet, ip_adapter = {"kind": "controlnet", "optimizer": False}, {"kind": "ip_adapter", "optimizer": True}
    once, cold = {"warm_up": False}, {"warm_up": False, "whole": True}
    table = [
        Case("training step, batch 1", "train", count=n, quick=True),
        Case("guided denoising step, batch 1", "denoise", LIBRARIES, n, quick=True),
        Case("import", "import", **cold, quick=True),
        Case("start to first toybox image", "image", **cold, quick=True, options={"steps": 50}),
        Case("load", "load", **once),
        Case(f"run of {10 * n} steps from a cold start", "whole_run", **cold, options={"steps": 10 * n}),
        Case("image of 20 steps", "image", LIBRARIES, **once, options={"steps": 20}),
        Case("lean image (DeepCache in minti alone)", "lean_image", ("minti", "openvino"), **once),
        Case("few-step image, 4 steps", "few_steps", LIBRARIES, options={"steps": 4}),
        Case("few-step image, tiny decoder", "few_steps", ("minti",), options={"steps": 4, "tiny": True}),
        Case("few-step image, all", "few_steps", ("minti",), options={"steps": 4, "tiny": True, "fast": True}),
        Case("training step, --fast", "fast", ("minti",), n, options={"case": "train"}),
        Case("UNet, guided, --fast", "fast", ("minti",), n, options={"case": "unet_step", "guided": True}),
        Case("LoRA training step, batch 1", "train", count=n, options={"lora": True}),
        Case("training step, checkpointing in both", "train", count=n, options={"checkpointing": True}),
        Case("ControlNet training step, no optimizer", "adapter", count=n, options=controlnet),
        Case("IP-Adapter training step", "adapter", count=n, options=ip_adapter),
    ]
    for how, guided in (("guided", {"guided": True}), ("without guidance", {"guided": False})):
        table.append(Case(f"UNet, {how}", "unet_step", LIBRARIES, n, options=guided))
        table.append(Case(f"UNet, {how}, short step (DeepCache)", "short_unet_step", ("minti",), n, options=guided))
    for batch in [4, 16, 64] if args.toybox else [4] if args.device.startswith("cuda") else []:
        table.append(Case(f"training step, batch {batch}", "train", count=n, batch=batch))
        table.append(Case(f"image of 20 steps, batch {batch}", "image", batch=batch, **once, options={"steps": 20}))
    return table


def write_adapters(source: str, folder: Path, seed: int) -> None:
    """A new ControlNet and a new IP-Adapter for a model."""
    model, generator = minti.StableDiffusion.from_pretrained(source), torch.Generator().manual_seed(seed)
    ControlNet.beside(model, generator).save(folder / "controlnet")
    save_ip_adapter(IPAdapter.beside(model, 1024, generator), folder / "ip_adapter.safetensors")


def measure(case: Case, library: str, model: str, adapters: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a case in a fresh process; what it measured."""
    job = {"library": library, "case": case.method, "count": case.count, "batch": case.batch, "options": case.options}
    job |= {"folder": str(minti.TOYBOX) if "toybox" in case.name else model, "adapters": str(adapters)}
    job |= {"device": args.device, "dtype": args.dtype, "clock": args.clock, "warm_up": case.warm_up, "size": args.size}
    clock = time.perf_counter if args.clock == "wall" else lambda: sum(os.times()[2:4])  # of finished child processes
    start = clock()
    command = [sys.executable, "-c", "from support.benchmark_cases import main; main()", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    seconds = clock() - start
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ValueError(f"{case.name}, {library}, failed: {reason}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"seconds": [seconds]} if case.whole else found


def compare(case: Case, libraries: list[str], *job: Any) -> dict[str, Any]:
    """Alternates between the libraries; medians, ranges, and each time relative to minti's. Prints the row."""
    *_, args = job
    runs = [(library, measure(case, library, *job)) for _ in range(args.repeats) for library in libraries]
    row: dict[str, Any] = {"case": case.name}
    for library in libraries:
        results = [result for name, result in runs if name == library]
        seconds = [number for result in results for number in result.pop("seconds")]
        own = row[library] = results[-1]
        own |= {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
        own |= {key: max(r[key] for r in results) for key in ("memory", "memory_in_steps") if key in own}
        own["ratio"] = own["median"] / row["minti"]["median"]
    print("| " + " | ".join([case.name, *cells(row)]) + " |", flush=True)
    for library in libraries:
        notes = [key for key in ("loss", "conversion", "compilation", "difference") if key in row[library]]
        if notes:
            print(f"  {library}: " + ", ".join(f"{key} {row[library][key]:.9g}" for key in notes), flush=True)
    return row


def cells(row: dict[str, Any]) -> Iterator[str]:
    """The cells of a row: seconds, ratios to minti, memory."""
    every = [row.get(library) for library in LIBRARIES]
    yield from (f"{own['median']:.3f} ({own['least']:.3f}-{own['most']:.3f})" if own else "" for own in every)
    yield from (f"{own['ratio']:.2f}" if own else "" for own in every[1:])
    gib = lambda own: " / ".join(f"{own[key] / 2**30:.1f}" for key in ("memory", "memory_in_steps"))  # noqa: E731
    yield from (gib(own) if own and "memory" in own else "" for own in every)


def available(args: argparse.Namespace) -> list[str]:
    """The libraries that can be timed; says why where OpenVINO cannot."""
    why = None
    if importlib.util.find_spec("openvino") is None:
        why = "it is not installed (pip install openvino)"
    elif args.device != "cpu" or args.dtype == "float16":
        why = f"it is timed on the cpu, in float32 and bfloat16; this is {args.device}, {args.dtype}"
    if why and "openvino" in args.libraries:
        print(f"without OpenVINO: {why}")
    return [name for name in args.libraries if name != "openvino" or why is None]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--toybox", action="store_true", help="the bundled model instead of SD v1.4's size")
    parser.add_argument("--model", type=filled, help="a model folder to time instead of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--size", type=whole(8), help="of the images, in pixels; default: the model's")
    parser.add_argument("--repeats", type=whole(1), default=2, help="fresh processes per case and library")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: with --toybox, two minutes")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases whose name contains one of these words")
    clock_help = "wall time, or processor seconds, which other processes hardly lengthen"
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help=clock_help)
    libraries_help = "minti, and what to time beside it; OpenVINO takes part in some cases, where it is installed"
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES, help=libraries_help)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for benchmark.json")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the random weights")
    args = parser.parse_args()
    args.repeats = 1 if args.quick else args.repeats
    return args


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What it is measured on; its matrix products, in GFLOP/s, are an upper bound for any network."""
    a, times = torch.randn(2048, 2048, device=args.device, dtype=getattr(torch, args.dtype)), []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return {
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": args.dtype,
        "clock": args.clock,
        "matrix_gflops": round(2 * 2048**3 / min(times) / 1e9),
    }


def main() -> None:
    """All cases, a table, and a line of JSON."""
    args = parse()
    check_device(args.device)
    make_output(args.output)
    chosen = [case for case in cases(args) if case.quick or not args.quick]
    chosen = [case for case in chosen if not args.only or any(word.lower() in case.name.lower() for word in args.only)]
    if not chosen:
        names = "; ".join(case.name for case in cases(args))
        raise ValueError(f"--only {' '.join(args.only)}: no case has such a word in its name; they are: {names}")
    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = args.model or str(minti.TOYBOX if args.toybox else folder / "model")
        if not args.model and not args.toybox:
            from support.diffusers_recipe import write_full_size_model

            write_full_size_model(folder / "model", minti.TOYBOX, args.seed)
        if any(case.method == "adapter" for case in chosen):
            write_adapters(model, folder, args.seed)
        facts, timed = machine(args), available(args)
        print(", ".join(f"{key} {value}" for key, value in facts.items()))
        titles = [f"{library}, s (range)" for library in LIBRARIES]
        titles += [f"{library} / minti" for library in LIBRARIES[1:]]
        titles += [f"{library}, GiB / in steps" for library in LIBRARIES]
        print(f"| case | {' | '.join(titles)} |\n{'|---' * (1 + len(titles))}|")
        rows = []
        for case in chosen:
            libraries = [library for library in case.libraries if library in timed]
            if "minti" in libraries:
                rows.append(compare(case, libraries, model, folder, args))
    result = json.dumps({"machine": facts, "rows": rows})
    with replacing(args.output / "benchmark.json") as temporary:
        temporary.write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    run(main)
