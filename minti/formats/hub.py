"""Model folders from the Hugging Face hub: which files minti downloads, and clear errors."""

import errno
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER = "openai/clip-vit-large-patch14"  # the tokenizer of all SD v1 models


def needed_files(variant: str | None = None) -> list[str]:
    """Patterns of the files that minti reads: safetensors, configs and the tokenizer, no more."""
    suffix = f".{variant}" if variant else ""
    patterns = ["defaults.json", "*/config.json", "scheduler/scheduler_config.json", "tokenizer/*"]
    for stem in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        patterns += [f"{stem}{suffix}.safetensors", f"{stem}{suffix}-*.safetensors"]
        patterns.append(f"{stem}.safetensors.index{suffix}.json")
    return patterns


def folder_of(source: str | os.PathLike[str], revision: str | None = None, variant: str | None = None) -> Path:
    """A model's folder: a local one, or that of an id on the hub, in huggingface_hub's cache."""
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{source} is neither a folder, nor a file, nor an id on the hub")
    return download(str(source), revision, needed_files(variant))


def download_tokenizer() -> Path:
    """The CLIP tokenizer of SD v1, which the original single files lack."""
    return download(TOKENIZER, None, ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"])


def download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder with the files of those patterns. Raises OSError: says what to do."""
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        reason = f"it asks to accept its licence first: do so at hf.co/{hub_id}, then log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = "the model exists, but has no such revision"
    except errors.RepositoryNotFoundError:
        reason = "no such model is visible to you; check the name, or log in with `hf auth login` if it is private"
    except errors.LocalEntryNotFoundError:
        reason = "it is not in the local cache, and the hub cannot be reached (offline mode, or no network)"
    except errors.HfHubHTTPError as error:
        reason = f"the hub answered: {str(error).splitlines()[0]}"
    except OSError as error:
        full = "no space is left on the disk; free some, or point HF_HOME at a larger one"
        reason = full if error.errno == errno.ENOSPC else str(error)
    raise OSError(f"cannot fetch {hub_id}{at} from the hub: {reason}")
