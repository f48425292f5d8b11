"""Part 12: how the known mistakes with placeholder tokens and what is trained are recognised (exercise E4, task 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import minti
from exercise.grader.lessons.e4 import refused
from exercise.grader.mistakes.tokens import ADDED, NEW_ROWS, PLACEHOLDERS, ROWS
from exercise.grader.mistakes.trainable import CHECKING, FREEZING, ONLY
from exercise.grader.part import Part, Task
from exercise.grader.world import captioned, seeded, toybox


def add_placeholders(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    return minti.text.add_tokens(tokenizer, placeholder, num_vectors)


def add_rows(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, ids: list[int], initializer_token: str) -> None:
    # as `StableDiffusion.add_word` does, with transformers' method
    start = minti.text.single_token_id(tokenizer, initializer_token)
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = text_encoder.get_input_embeddings().weight.data
    weight[ids] = weight[start].clone()


def freeze_all_but_embeddings(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    for network in (unet, vae, text_encoder):  # as `StableDiffusion.freeze` and `MaskedEmbedding.hooks` do
        network.requires_grad_(False)
    text_encoder.get_input_embeddings().requires_grad_(True)


def check_trainable(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    weight = text_encoder.get_input_embeddings().weight
    assert weight.requires_grad, "the token embeddings are frozen"
    for network in (unet, vae, text_encoder):
        for name, value in network.named_parameters():
            assert value is weight or not value.requires_grad, f"{name} is trainable"


@cache
def known_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(minti.TOYBOX / "tokenizer")


def own_tokenizer() -> CLIPTokenizer:
    """The toybox's tokenizer; in it "toy" is one token, "x" another than the letter within a word, "zebra" several."""
    return copy.deepcopy(known_tokenizer())


def small_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One layer, with random weights that are the same every time."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(**small, **special, max_position_embeddings=tokenizer.model_max_length)
    config.vocab_size = len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPTextModel(config).eval()


def placeholder_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """Ids, the tokenizer's length, and what the new words are read as."""
    one, three, found = own_tokenizer(), own_tokenizer(), {}
    found['the ids of "<x>" with one vector'] = listed(function(one, "<x>", 1))
    found['how "a <x>" is read then'] = one("a <x>", add_special_tokens=False).input_ids
    found['the ids of "<y>" with three vectors'] = listed(function(three, "<y>", 3))
    found['how "<y> <y>_1 <y>_2" is read then'] = three("<y> <y>_1 <y>_2", add_special_tokens=False).input_ids
    found["how many tokens were added for three vectors"] = len(three) - len(known_tokenizer())
    found['"<x>" once more'] = refused(lambda: function(one, "<x>", 1))
    partly = own_tokenizer()
    add_placeholders(partly, "<x>_1", 1)
    found['"<x>" with two vectors, where "<x>_1" is known'] = refused(lambda: function(partly, "<x>", 2))
    return found


def listed(ids: Any) -> Any:
    """Ids as a list, also where they are in a tensor or a tuple."""
    return ids.tolist() if isinstance(ids, Tensor) else list(ids) if isinstance(ids, tuple) else ids


def rows_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """What is in the matrix with one row more and with two; and an initializer that is several tokens."""
    found: dict[str, Any] = {}
    for count, word in ((1, "toy"), (2, "x")):
        tokenizer = own_tokenizer()
        text_encoder, ids = small_text_encoder(tokenizer), add_placeholders(tokenizer, "<new>", count)
        known = text_encoder.get_input_embeddings().weight.detach()[: ids[0]].clone()
        function(text_encoder, tokenizer, list(ids), word)
        weight = text_encoder.get_input_embeddings().weight.detach()
        changed = (weight[: ids[0]] != known).any(1).nonzero().flatten() if len(weight) > ids[-1] else torch.tensor([])
        found[f"rows of the matrix, {count} of them new"] = len(weight)
        found[f'{count} new rows of "{word}"'] = [described(row, known, tokenizer) for row in weight[ids[0] :][:count]]
        found["other rows that were changed"] = tokenizer.convert_ids_to_tokens(changed.tolist())
    tokenizer = own_tokenizer()
    text_encoder, ids = small_text_encoder(tokenizer), add_placeholders(tokenizer, "<new>", 1)
    found['"zebra", which is four tokens'] = refused(lambda: function(text_encoder, tokenizer, ids, "zebra"))
    return found


def described(row: Tensor, known: Tensor, tokenizer: CLIPTokenizer) -> str:
    """What an embedding vector is: a copy of a token's, zeros, or something else, such as what resizing leaves."""
    same = (row == known).all(1).nonzero().flatten().tolist()
    return f"a copy of {tokenizer.convert_ids_to_tokens(same[0])}" if same else "no copy" if row.any() else "zeros"


def networks(trainable: bool = False) -> tuple[nn.Module, nn.Module, CLIPTextModel]:
    """A UNet, a VAE and a text encoder, all small."""
    unet, vae = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    for network in (parts := (unet, vae, small_text_encoder(known_tokenizer()))):
        network.requires_grad_(trainable)
    return parts


def trainable_names(parts: Sequence[nn.Module]) -> str:
    """What is trainable, in words: all of a network, some of it by name, or nothing."""
    names = []
    for name, network in zip(("the UNet", "the VAE", "the text encoder"), parts):
        values = {key: value.requires_grad for key, value in network.named_parameters()}
        some = [key.removeprefix("text_model.") for key, value in values.items() if value]
        names += [name] if len(some) == len(values) else [f"{key} of {name}" for key in some]
    return ", ".join(names) or "nothing"


def freezing_probe(function: Callable[..., Any]) -> dict[str, Any]:
    found = {}
    for before, trainable in (("everything", True), ("nothing", False)):
        parts = networks(trainable)
        function(*parts)
        found[f"what is trainable, where {before} was"] = trainable_names(parts)
    return found


def checking_probe(function: Callable[..., Any]) -> dict[str, Any]:
    """Which states pass: the right one, and wrong ones, in each of which one thing is otherwise."""
    found: dict[str, Any] = {}

    def state(name: str, change: Callable[[nn.Module, nn.Module, CLIPTextModel], Any]) -> None:
        parts = networks()
        parts[2].get_input_embeddings().requires_grad_(True)
        change(*parts)
        found[name] = refused(lambda: function(*parts))

    state("only the token embeddings are trainable", lambda unet, vae, text: None)
    state("everything is trainable", lambda *parts: [part.requires_grad_(True) for part in parts])
    state("nothing is trainable", lambda unet, vae, text: text.requires_grad_(False))
    state("the UNet is trainable, too", lambda unet, vae, text: unet.requires_grad_(True))
    state("the UNet's last layer is trainable, too", lambda unet, vae, text: unet[-1].requires_grad_(True))
    state("the VAE is trainable, too", lambda unet, vae, text: vae.requires_grad_(True))
    state("the VAE's last layer is trainable, too", lambda unet, vae, text: vae[-1].requires_grad_(True))
    state("all of the text encoder is trainable", lambda unet, vae, text: text.requires_grad_(True))
    last, position = "final_layer_norm.weight", "position_embedding.weight"
    for name, end in (("the text encoder's last layer", last), ("the position embeddings", position)):
        state(f"{name} trainable, too", lambda unet, vae, text, end=end: one_of(text, end).requires_grad_(True))
    return found


def one_of(text_encoder: CLIPTextModel, end: str) -> nn.Parameter:
    """The parameter whose name ends so, from transformers 4 and 5 on alike."""
    return next(value for name, value in text_encoder.named_parameters() if name.endswith(end))


def image(mine: Any) -> Image.Image:
    """Three toys with the initializer token, and with a word that has just been added: the same, noise for noise."""
    model = toybox()
    text_encoder, tokenizer = model.text_encoder, model.tokenizer
    before = len(text_encoder.get_input_embeddings().weight)
    if "<gem>" not in tokenizer.get_vocab():
        ids = mine.add_placeholders(tokenizer, "<gem>", 1)
        mine.add_rows(text_encoder, tokenizer, ids, "toy")
    mine.freeze_all_but_embeddings(model.unet, model.vae, text_encoder)
    mine.check_trainable(model.unet, model.vae, text_encoder)
    options = {"num_inference_steps": 15, "sampler": "ddim"}
    prompts = ["a photo of a toy", "a photo of a <gem>"]
    rows = [minti.sample(model, [prompt] * 3, generator=seeded(3), **options) for prompt in prompts]
    model.freeze()
    grown = f"{before} embedding vectors before, {len(text_encoder.get_input_embeddings().weight)} now"
    return captioned([each for row in rows for each in row], [""] * 6, 3, [f"{prompts[0]}; {grown}", prompts[1]])


PART = Part(
    (
        Task(add_placeholders, placeholder_probe, ADDED, PLACEHOLDERS),
        Task(add_rows, rows_probe, ROWS, NEW_ROWS),
        Task(freeze_all_but_embeddings, freezing_probe, ONLY, FREEZING),
        Task(check_trainable, checking_probe, ONLY, CHECKING),
    ),
    image,
)
