"""The tokenizer of a folder, which must hold all that it names."""

from pathlib import Path

from transformers import CLIPTokenizer

from minti.checkpoints.configs import read_json
from minti.machine.messages import one_line

UNREAD = "special_tokens_map_file"  # a path on the computer of whoever wrote the release's; nothing opens it


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a model folder's `tokenizer/`: vocab.json and merges.txt, or tokenizer.json of newer tools.
    Raises FileNotFoundError, ValueError: a file is missing or damaged, or the config names one elsewhere."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; expected a CLIP tokenizer's vocab and merges")
    check_files(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer("a", padding="max_length", max_length=3, truncation=True)
        return tokenizer
    except Exception as error:  # of the tokenizers library some are no more than Exception
        raise ValueError(f"{folder} holds no whole CLIP tokenizer ({one_line(error)}); fetch it again") from None


def check_files(folder: Path) -> None:
    """Raises ValueError: a file name in a tokenizer's config leads out of the folder; transformers would follow it."""
    path = folder / "tokenizer_config.json"
    for key, value in (read_json(path) if path.is_file() else {}).items():
        names = [str(name) for name in (value if isinstance(value, list) else [value] if value else [])]
        follows = key.endswith(("_file", "_files")) and key != UNREAD
        if follows and any(str(Path(name)) != Path(name).name for name in names):
            raise ValueError(f"{path}: {key} = {value!r} is not a file beside it")
