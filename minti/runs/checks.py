"""Checks of settings, words, files and training steps: each raises an error in one clear line that says what to do.

The core calls them by name (`utils.check`) and runs without them.
"""

import copy
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from minti.runs.messages import short_repr, shortened
from minti.scheduler import SPACINGS
from minti.templates import TEMPLATES
from minti.text import add_tokens, placeholder_tokens, token_ids
from minti.training import Trainer, TrainingError
from minti.utils import check_choice

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


def config(settings: Any) -> None:
    """Raises ValueError: a setting that `TextualInversionConfig`, or one of its kind, cannot have; names it."""
    known = lambda *names: [name for name in names if name in type(settings).__dataclass_fields__]  # noqa: E731
    check_choice("row_update", settings.row_update, ("new_rows", "restore"))
    check_range(settings, 1, 10**9, "steps", "max_steps", "batch_size", "gradient_accumulation")
    check_range(settings, 1, 1000, "num_vectors")  # each becomes a token before it is found not to fit
    check_range(settings, 0, 2**63 - 1, *known("warmup_steps", "seed", "class_pictures"))
    check_range(settings, 0.0, 1e6, *known("learning_rate", "weight_decay", "prior_weight", "word_learning_rate"))
    check_range(settings, 1e-12, 1e12, *known("max_gradient_norm", "max_row_norm", "huber", "min_snr"))
    if known("lr_schedule"):
        check_choice("lr_schedule", settings.lr_schedule, ("constant", "cosine"))
    if settings.templates is not None:
        check_templates(settings.templates)
    for caption in settings.captions or ():
        check_text(caption, "caption")
    check_text(settings.placeholder_token, "placeholder token")


def check_templates(templates: str | Sequence[str]) -> None:
    """Raises ValueError: an unknown name of `TEMPLATES`; no template, or one without `{}`; names it."""
    if isinstance(templates, str):
        return check_choice("templates", templates, list(TEMPLATES))
    if not templates:
        raise ValueError("templates is empty; give at least one, such as 'a photo of a {}'")
    for template in templates:
        check_text(template, "template")
        if "{}" not in template:
            raise ValueError(f"template {short_repr(template)} has no {{}}; write {{}} where the new word goes")


def check_text(text: str, what: str) -> None:
    """Raises ValueError: the text is no str, or cannot be encoded (half characters come from file names and command
    lines that are not UTF-8); calls it `what`."""
    if not isinstance(text, str):
        raise ValueError(f"{what} {short_repr(text)} is not text; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character (a lone surrogate) at {error.start}"
        raise ValueError(f"{what} {short_repr(text)} holds {half}; expected UTF-8") from None


def check_new_placeholder(tokenizer: CLIPTokenizer, placeholder: str) -> None:
    """Raises ValueError: the placeholder is empty, contains white space or what cannot be printed, changes when the
    tokenizer tidies it, or is a word already (it lower-cases, so `<Cat>` and `<cat>` are the same word)."""
    tidied = unicodedata.normalize("NFC", placeholder)
    if not placeholder or not placeholder.isprintable() or re.search(r"\s", placeholder) or tidied != placeholder:
        raise ValueError(
            f"placeholder token {short_repr(placeholder)}: expected one word without spaces, as '<concept>'"
        )
    lower = placeholder.lower()
    for token in tokenizer.get_vocab():
        if token.lower() in (lower, lower + "</w>"):
            same = "" if token in (placeholder, placeholder + "</w>") else f" as {token.removesuffix('</w>')!r}"
            known = (
                f"placeholder token {short_repr(placeholder)} is in the vocabulary already{same} (case does not count)"
            )
            raise ValueError(f"{known}; choose a word that does not exist, such as '<my-concept>'")


def tokenizer_with(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> tuple[CLIPTokenizer, list[int]]:
    """A copy of the tokenizer with a new word, and the ids of its tokens.
    Raises ValueError: it cannot be a new word, or the tokenizer would not find it in a prompt."""
    tried = copy.deepcopy(tokenizer)
    ids = add_tokens(tried, placeholder, num_vectors)
    if token_ids(placeholder, tried, {placeholder: ids}) != ids:
        lost = "would not be found in a prompt by this tokenizer; choose plain letters, such as '<my-concept>'"
        raise ValueError(f"placeholder token {short_repr(placeholder)} {lost}")
    return tried, ids


def check_new_word(wrapper: Any) -> None:
    """Raises ValueError: the placeholder cannot be a new word or is not found in a prompt, a template is too long for
    all of its vectors, or E4's recipe would have to train a matrix in half precision."""
    config, dtype = wrapper.config, wrapper.model.text_encoder.get_input_embeddings().weight.dtype
    if config.row_update == "restore" and dtype != torch.float32:
        mend = "load the model in float32, or use row_update='new_rows', whose vectors are float32 in any model"
        raise ValueError(f"row_update='restore' trains the embedding matrix itself, which is {dtype}; {mend}")
    placeholder, length = config.placeholder_token, wrapper.model.tokenizer.model_max_length
    tokenizer, ids = tokenizer_with(wrapper.model.tokenizer, placeholder, config.num_vectors)
    for prompt in wrapper.prompts:
        found = token_ids(prompt, tokenizer, wrapper.model.words | {placeholder: ids})
        if not set(ids) <= set(found):
            mend = "; write {} in every caption where the word goes" if config.captions else ""
            raise ValueError(f"the tokenizer does not find {placeholder} in the prompt {short_repr(prompt)}{mend}")
        if not set(ids) <= set(found[: length - 2]):  # without the beginning and the end
            lacks = f"does not contain all {len(ids)} vectors of {placeholder} once tokenized"
            why = f"it is too long for the {length} tokens of the context; use a shorter template or fewer vectors"
            raise ValueError(f"the prompt {short_repr(prompt)} {lacks}: {why}")


def step(trainer: Trainer, loss: float, norm: float, batches: Sequence[Any]) -> None:
    """Raises TrainingError: loss or gradient is not finite, beyond what float16's scaler can mend, or is zero."""
    at, scaler = f"step {trainer.number} of {trainer.adapter.name}", trainer.scaler
    finite = math.isfinite(loss) and math.isfinite(norm)
    if not finite and not (scaler.is_enabled() and scaler.get_scale() > 2.0 ** (16 - MAX_SKIPPED)):
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        culprit, rate = not_finite(trainer.model), trainer.optimizer.param_groups[0]["lr"]
        lower = f"try a lower learning rate (it is {rate:g}) or float32"
        mend = f"so is {culprit}: fetch that file again" if culprit else lower
        raise TrainingError(f"{what} at {at}, of {', '.join(map(described, batches))}; {mend}")
    if norm == 0:
        raise TrainingError(f"there is no gradient at {at}: nothing leads from it to the loss")


def described(batch: Any) -> str:
    """A batch, or one of several kinds, in words."""
    if hasattr(batch, "indices"):
        return ", ".join(f"image {i} at timestep {t}" for i, t in zip(batch.indices, batch.timesteps.tolist()))
    instance, prior = getattr(batch, "instance", None), getattr(batch, "prior", None)
    if instance is None:
        return type(batch).__name__
    return described(instance) + (f", of the class {described(prior)}" if prior is not None else "")


def written_words(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: the file is not a `.safetensors`, or a number is not finite."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: learned words are written as safetensors only; end the name in .safetensors")
    for token, vectors in words.items():
        if not vectors.isfinite().all():
            raise ValueError(f"{path} is not written: {token} is not finite; try a lower learning rate")


def read_words(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: a file has no words."""
    if not words:
        raise ValueError(f"{path} holds no learned words; expected a file of diffusers or of AUTOMATIC1111")
    for token, tensor in words.items():
        check_vectors(tensor, f"{path}: {shortened(token)}")


def one_word(path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: a file has several words."""
    if len(words) > 1:
        listed = f"{len(words)} words ({shortened(', '.join(words))})"
        raise ValueError(f"{path} holds {listed}; one name cannot serve all")


def check_vectors(tensor: Tensor, what: str) -> None:
    """Raises ValueError: a tensor is no embedding vectors of a word, (n, d) or (d,); calls it `what`."""
    kind = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    plain = tensor.layout == torch.strided and tensor.is_floating_point() and not tensor.is_meta
    if tensor.ndim not in (1, 2) or 0 in tensor.shape or not plain:
        raise ValueError(f"{what} is {kind}; expected its embedding vectors, (n, d), of floating point numbers")
    if not tensor.float().isfinite().all():
        raise ValueError(f"{what}, {kind}, has numbers that are not finite; learn it again")


def loaded_words(model: Any, path: Any, words: dict[str, Tensor]) -> None:
    """Raises ValueError: the words of a file do not fit a model; names the file and the word."""
    weight = model.text_encoder.get_input_embeddings().weight
    for token, vectors in words.items():
        what = f"{path}: {shortened(token)}"
        if vectors.shape[1] != weight.shape[1]:
            own = f"the words of this model are {weight.shape[1]} numbers wide; it was learned on another model"
            raise ValueError(f"{what} has shape {tuple(vectors.shape)}, but {own}")
        if len(vectors) > model.tokenizer.model_max_length - 2:
            raise ValueError(f"{what} has {len(vectors)} vectors, more than a prompt can hold")
        if not vectors.to(weight).isfinite().all():
            raise ValueError(f"{what} has numbers too large for this model's {weight.dtype}")
        try:
            tokenizer_with(model.tokenizer, token, len(vectors))
        except ValueError as error:
            raise ValueError(f"{path}: {error}, under which to load it") from None
    tokens = [part.lower() for token, x in words.items() for part in placeholder_tokens(token, len(x))]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{path} holds words that are the same but for their case: {shortened(', '.join(words))}")


def finite(model: Any, what: str, result: Tensor, otherwise: str = OVERFLOW) -> None:
    """Raises ValueError: a result is NaN or infinite; names the weight to blame, or else why `otherwise`."""
    if not is_finite(result):
        culprit = not_finite(model)
        why = f"so has {culprit}; fetch the file again, or use another" if culprit else otherwise
        raise ValueError(f"{what} have numbers that are not finite: {why}")


def not_finite(model: Any) -> str | None:
    """The first weight with a number that is NaN or infinite, such as "unet: conv_in.weight"; None without one."""
    for part in ("unet", "vae", "text_encoder"):
        for name, weight in getattr(model, part).named_parameters():
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


def prompts(prompts: Any) -> None:
    """Raises ValueError: there are none."""
    if not len(prompts):
        raise ValueError("no prompt given")


def images(images: Any) -> None:
    """Raises ValueError: there are none."""
    if len(images) == 0:
        raise ValueError("there are no images to learn from")


def single_token(tokenizer: CLIPTokenizer, word: str, ids: list[int]) -> None:
    """Raises ValueError: an initializer token is not a single token, or unknown."""
    if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
        pieces = shortened(" + ".join(tokenizer.convert_ids_to_tokens(ids))) or "nothing"
        found = f"initializer token {short_repr(word)} is not a single token of this vocabulary (it becomes {pieces})"
        raise ValueError(f"{found}; choose a plain word, or several, that say roughly what the images show")


def contexts(context: Tensor, width: int, like: Tensor | None, name: str) -> None:
    """Raises ValueError: no prompt, contexts of another shape, or of another number than the prompts `like`."""
    if context.ndim != 3 or context.shape[-1] != width or not len(context):
        raise ValueError(f"contexts of shape {tuple(context.shape)}; expected (b, n, {width}), as of encode_prompt")
    if like is not None and len(context) not in (1, len(like)):
        raise ValueError(f"{len(context)} {name} for {len(like)} prompts; give one, or one for each")


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
