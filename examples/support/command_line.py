"""What every script does: common options, one-line errors, loading the model, an output folder that can be written."""

from support.memory import keep_freed_memory
from support.option_types import filled, finite, utf8, whole

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

import minti
from minti.configs import ModelDefaults, read_config
from minti.loading import DEFAULTS
from minti.runs import distributed
from minti.runs.messages import one_line, shortened

LONGEST = 1000  # characters of a message
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where there is one that the help does not explain."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        explained = action.default in (None, False, []) or "default" in (action.help or "")
        return action.help if explained else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("type", None, utf8)  # of options without a type of their own

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shortened(message, LONGEST)} (--help lists all options)\n")


def arguments(description: str, output: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have; `output` None leaves the folder to the script."""
    parser = _Parser(description=description, formatter_class=_Help)
    model_help = "the bundled toybox; or SD v1.4: a folder, the original single file, or an id on the Hugging Face hub"
    parser.add_argument("--model", type=filled, default=str(minti.TOYBOX), help=model_help)
    where = "folder for the results" + ("; default: outputs/NAME of the images' folder" if output is None else "")
    parser.add_argument("--output", type=Path, default=output and Path(output), help=where)
    seed = {"type": whole(0, 2**62), "default": 0}
    parser.add_argument("--seed", help="of everything random; image i is sampled with seed + i", **seed)
    device_help = "cpu, cuda, cuda:1, mps (a Mac's GPU) ..."
    parser.add_argument("--device", default=default_device(), help=device_help)
    dtype_help = (
        "number format of the networks; auto: bfloat16 on a GPU or CPU that multiplies it, float16 on another GPU, "
        "else, and for the toybox, float32"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=dtype_help)
    guidance_help = "1 switches guidance off; default: the model's own, 7.5 on SD v1.4, 5 on the toybox"
    parser.add_argument("--guidance-scale", type=finite, help=guidance_help)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def default_device() -> str:
    """cuda, else mps (Apple's GPUs), where there is one, else cpu; of several processes gloo, which mps lacks, needs
    the cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and "LOCAL_RANK" not in os.environ else "cpu"


locked: list[int] = []  # descriptors of the folders that are this script's own


def run(main: Callable[[], None]) -> None:
    """Calls a script's main function; a bad input ends it with one line instead of a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = lambda message, *_: print(f"warning: {shortened(str(message), LONGEST)}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be UTF-8
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # it would announce every one of its attempts
    try:
        main()
    except (ValueError, OSError, minti.TrainingError) as error:
        sys.exit(f"error: {shortened(str(error), LONGEST) or type(error).__name__}")
    except RuntimeError as error:
        if "memory" in str(error):
            hint = "try --dtype bfloat16, a smaller --batch-size, or for training --gradient-checkpointing"
            sys.exit(f"error: there is not enough memory ({str(error).splitlines()[0]}); {hint}")
        if distributed.world_size() == 1:
            raise
        sys.exit(f"error: rank {distributed.rank()} stops: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        distributed.stop()
        while locked:
            os.close(locked.pop())


def load(args: argparse.Namespace) -> minti.StableDiffusion:
    """The model that the arguments name; fills in the guidance scale that suits it."""
    keep_freed_memory()
    check_device(args.device)
    args.device = distributed.start(args.device)
    args.quiet = args.quiet or distributed.rank() > 0
    dtype = DTYPES[args.dtype]
    if dtype is None:
        path = Path(args.model) / DEFAULTS
        defaults = read_config(ModelDefaults, path) if path.is_file() else ModelDefaults()
        dtype = automatic_dtype(args.device) if defaults.half_precision else torch.float32
    model = minti.StableDiffusion.from_pretrained(args.model, args.device, dtype)
    if args.guidance_scale is None:
        args.guidance_scale = model.defaults.guidance_scale
    return model


def check_device(name: str) -> None:
    """Finds out whether torch knows the device, and has one.

    Raises:
        ValueError: it does not.
    """
    try:
        torch.zeros(1, device=name).item()  # torch has devices that hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = one_line(error).split(". ")[0][:120]
        raise ValueError(f"--device {shortened(name)} cannot be used here ({reason}); try --device cpu") from None


def automatic_dtype(device: str) -> torch.dtype:
    """Half precision where the machine multiplies it; elsewhere float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Emulated, as older torch may do without a word, bfloat16 would be slower: what torch does not tell is no.
    able = getattr(torch.cpu, "get_capabilities", dict)() if device.startswith("cpu") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def make_output(folder: Path) -> Path:
    """Creates the output folder, and finds out now whether it can be written, not after the work is done.

    Until the script ends, the folder belongs to it and to its other ranks: another run that wants it gets an error.

    Raises:
        OSError: it cannot be created or written, or another process writes to it.
    """
    make_writable(folder)
    if fcntl is not None and os.environ.get("RANK", "0") == "0":
        lock(folder)
    return folder


def make_writable(folder: Path) -> None:
    """Creates a folder, or finds out whether the one that is there can be written.

    Raises:
        OSError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OSError(f"cannot write to the output folder {shortened(str(folder), 300)}: {reason}") from None


def lock(folder: Path) -> None:
    """Makes a folder this script's own until it ends, where the file system can (not all network ones do)."""
    locked.append(os.open(folder, os.O_RDONLY))
    try:
        fcntl.flock(locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"another run is writing to {folder}; wait for it, or give another --output") from None
    except OSError as error:
        warnings.warn(f"nothing keeps another run out of {folder} ({error.strerror})", stacklevel=2)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator for each image, seeded seed, seed + 1, ...: image i is the same in any batch."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
