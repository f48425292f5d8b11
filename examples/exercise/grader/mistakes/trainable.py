"""Part 12's known mistakes with what is trainable, and with the asserts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import CLIPTextModel

from exercise.grader.part import Mistake

ONLY = '`000`, task 2, third item: "nothing else!"'


def freezing_by(
    frozen: Iterable[int] = (0, 1, 2),
    trained: Callable[[CLIPTextModel], Any] = lambda text: text.get_input_embeddings().requires_grad_(True),
    last: bool = False,
) -> Callable[..., None]:
    """Freezes some of UNet, VAE and text encoder, then makes something trainable; in the other order if `last`."""

    def function(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
        if last:
            trained(text_encoder)
        for i in frozen:
            (unet, vae, text_encoder)[i].requires_grad_(False)
        if not last:
            trained(text_encoder)

    return function


def by_attribute(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    for network in (unet, vae, text_encoder):
        network.requires_grad = False
    text_encoder.get_input_embeddings().weight.requires_grad = True


def all_embeddings(text_encoder: CLIPTextModel) -> None:
    for name, value in text_encoder.named_parameters():
        value.requires_grad_("embedding" in name)


def the_others(text_encoder: CLIPTextModel) -> None:
    text_encoder.requires_grad_(True)
    text_encoder.get_input_embeddings().requires_grad_(False)


FREEZING = (
    Mistake(
        "everything frozen, the token embeddings as well",
        freezing_by(last=True),
        "In which order do you freeze and make trainable, and what holds in the end?",
        ONLY,
    ),
    Mistake("the UNet not frozen", freezing_by((1, 2)), "Which of the three networks did you treat?", ONLY),
    Mistake("the VAE not frozen", freezing_by((0, 2)), "Which of the three networks did you treat?", ONLY),
    Mistake("UNet and VAE not frozen", freezing_by((2,)), "Which of the three networks did you treat?", ONLY),
    Mistake(
        "the rest of the text encoder not frozen",
        freezing_by((0, 1)),
        "Are the token embeddings all of the text encoder?",
        ONLY,
    ),
    Mistake(
        "the text encoder left as it is",
        freezing_by((0, 1), lambda text: None),
        "What is trainable of it if all of it was before, and what if nothing was?",
        ONLY,
    ),
    Mistake(
        "the whole text encoder trainable",
        freezing_by(trained=lambda text: text.requires_grad_(True)),
        "Which layer of the text encoder is it that is trained?",
        ONLY,
    ),
    Mistake(
        "the position embeddings trainable, too",
        freezing_by(trained=all_embeddings),
        "How many embedding layers has a CLIP text encoder, and which one does a token's id go to?",
        ONLY,
    ),
    Mistake(
        "a network given an attribute `requires_grad`, which it does not read",
        by_attribute,
        "A network is no tensor: which of its methods passes the wish on to its parameters?",
        ONLY,
    ),
    Mistake(
        "nothing changed at all (`eval()` or `no_grad` freeze nothing)",
        lambda unet, vae, text_encoder: None,
        "Which attribute of a parameter says whether it is trainable?",
        ONLY,
    ),
    Mistake(
        "all but the token embeddings trainable: the wrong way round",
        freezing_by((0, 1), the_others),
        "Which of the two is to learn?",
        ONLY,
    ),
)


def checking_by(
    embedding: bool = True,
    checked: Iterable[int] = (0, 1, 2),
    parameters: Callable[[nn.Module], Iterable[tuple[str, nn.Parameter]]] = lambda network: network.named_parameters(),
    free: Callable[[str], bool] = lambda name: "token_embedding" in name,
    together: Callable[[Iterable[bool]], bool] = any,
) -> Callable[..., None]:
    """Asserts some of what is to hold."""

    def function(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
        assert not embedding or text_encoder.get_input_embeddings().weight.requires_grad
        for i in checked:
            others = [value.requires_grad for name, value in parameters((unet, vae, text_encoder)[i]) if not free(name)]
            assert not together(others)

    return function


def upside_down(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    try:
        checking_by()(unet, vae, text_encoder)
    except AssertionError:
        return
    raise AssertionError


CHECKING = (
    Mistake(
        "nothing is ever refused (a value returned, or an assert with parentheses around condition and message?)",
        lambda unet, vae, text_encoder: None,
        "What does your function do with a model in which everything is trainable?",
        ONLY,
    ),
    Mistake(
        "frozen token embeddings not noticed",
        checking_by(embedding=False),
        "What could be learned if nothing at all were trainable?",
        ONLY,
    ),
    Mistake(
        "only the token embeddings looked at",
        checking_by(checked=()),
        "They are trainable; is that all that is asked?",
        ONLY,
    ),
    Mistake("the UNet not looked at", checking_by(checked=(1, 2)), "How many networks has the model?", ONLY),
    Mistake("the VAE not looked at", checking_by(checked=(0, 2)), "How many networks has the model?", ONLY),
    Mistake(
        "the rest of the text encoder not looked at",
        checking_by(checked=(0, 1)),
        "What else does the text encoder have besides its token embeddings?",
        ONLY,
    ),
    Mistake(
        "trainable position embeddings not noticed",
        checking_by(free=lambda name: "embedding" in name),
        "Which names of parameters do you let pass?",
        ONLY,
    ),
    Mistake(
        "only the first parameter of each network looked at",
        checking_by(parameters=lambda network: list(network.named_parameters())[:1]),
        "How many parameters does `next(network.parameters())` look at?",
        ONLY,
    ),
    Mistake(
        "a network noticed only if all of it is trainable",
        checking_by(together=all),
        "`all` or `any`: what if one layer of the UNet is trainable?",
        ONLY,
    ),
    Mistake(
        "the token embeddings refused as well",
        checking_by(free=lambda name: False),
        "Which of the text encoder's parameters is allowed to be trainable?",
        ONLY,
    ),
    Mistake(
        "refused where it is right, and accepted where it is wrong",
        upside_down,
        "What does `assert x` do if x is true?",
        ONLY,
    ),
)
