"""Part 13's known mistakes with what the loss is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from exercise.grader.mistakes.encoding import encoding, tokenizing
from exercise.grader.part import Mistake

STEP = "`000`, task 3a; `002` 16"


def stepping(
    templates: Callable[..., Any] = lambda n, b, g: torch.randint(n, (b,), generator=g),
    timesteps: Callable[..., Any] = lambda count, b, g: torch.randint(count, (b,), generator=g),
    prompt: Callable[[str, str], str] = lambda template, placeholder: template.replace("{}", placeholder),
    context: Callable[[Any, Tensor], Tensor] = lambda encoder, ids: encoder(ids).last_hidden_state,
    returned: Callable[[Tensor], Any] = lambda value: value,
    noise: Callable[[torch.Generator], Any] = lambda generator: generator,
    scaled: bool = True,
    gradient: bool = False,
) -> Callable[..., Any]:
    """`training_loss` with something else in one of its places."""

    def function(
        wrapper: Any,
        pixels: Tensor,
        chosen: Sequence[str],
        placeholder: str,
        loss: Callable[..., Tensor],
        generator: torch.Generator,
    ) -> Any:
        size = len(pixels)
        encode = encoding(scaled=lambda x, factor: x * factor if scaled else x, gradient=gradient)
        encoded = encode(wrapper.vae, pixels, generator)
        numbers = templates(len(chosen), size, generator)
        t = timesteps(wrapper.scheduler.config.num_train_timesteps, size, generator)
        prompts = [prompt(chosen[i], placeholder) for i in numbers]
        embeddings = context(wrapper.text_encoder, tokenizing()(wrapper.tokenizer, prompts))
        return returned(loss(wrapper, encoded, t, embeddings, noise(generator)))

    return function


def after_backward(value: Tensor) -> Tensor:
    value.backward()
    return value


one_of = lambda n, b, g: torch.randint(n, (1,), generator=g)  # noqa: E731
LOSSES = (
    Mistake(
        "the text encoder without a gradient, so that the word learns nothing",
        stepping(context=torch.no_grad()(lambda encoder, ids: encoder(ids).last_hidden_state)),
        "By which way does the loss's gradient reach the embedding vector?",
        STEP,
    ),
    Mistake(
        "the text encoder's pooled output, where the hidden states of all tokens belong",
        stepping(context=lambda encoder, ids: encoder(ids).pooler_output[:, None]),
        "What shape has what the UNet attends to?",
        "`002` 7.4",
    ),
    Mistake(
        "the placeholder not put into the template",
        stepping(prompt=lambda template, placeholder: template),
        "Which prompts does the text encoder read? Print them.",
        STEP,
    ),
    Mistake(
        "the placeholder alone, without its template",
        stepping(prompt=lambda template, placeholder: placeholder),
        "What are `templates` for?",
        "arXiv 2208.01618, section 3",
    ),
    Mistake(
        "always the first template",
        stepping(lambda n, b, g: 0 * torch.randint(n, (b,), generator=g)),
        "How many of the templates does the word ever see?",
        STEP,
    ),
    Mistake(
        "one template for the whole batch",
        stepping(lambda n, b, g: one_of(n, b, g).expand(b)),
        "How many templates does a batch of three images need?",
        "the docstring",
    ),
    Mistake(
        "one timestep for the whole batch",
        stepping(timesteps=lambda count, b, g: one_of(count, b, g).expand(b)),
        "How many timesteps does a batch of three images need?",
        "the docstring",
    ),
    Mistake(
        "one timestep, and not a tensor of one for each image",
        stepping(timesteps=one_of),
        "What shape have the timesteps of a batch of three images?",
        "the docstring",
    ),
    Mistake(
        "timesteps between 0 and 1",
        stepping(timesteps=lambda count, b, g: torch.rand(b, generator=g)),
        "What does the noise schedule look up with a timestep?",
        "part 1",
    ),
    Mistake(
        "timesteps from 1 on",
        stepping(timesteps=lambda count, b, g: torch.randint(1, count + 1, (b,), generator=g)),
        "What is the first timestep called in the code, and what the last?",
        "part 1",
    ),
    Mistake(
        "timesteps of 1,000 steps, however many there are",
        stepping(timesteps=lambda count, b, g: torch.randint(1000, (b,), generator=g)),
        "Who knows how many timesteps the noise schedule has?",
        "the argument `wrapper`",
    ),
    Mistake(
        "the last timestep never drawn",
        stepping(timesteps=lambda count, b, g: torch.randint(count - 1, (b,), generator=g)),
        "What is the largest number that `torch.randint(n, ...)` draws?",
        STEP,
    ),
    Mistake(
        "timesteps without the generator that is given",
        stepping(timesteps=lambda count, b, g: torch.randint(count, (b,))),
        "Would another run with the same seed draw the same?",
        "the argument `generator`",
    ),
    Mistake(
        "templates without the generator that is given",
        stepping(lambda n, b, g: torch.randint(n, (b,))),
        "Would another run with the same seed draw the same?",
        "the argument `generator`",
    ),
    Mistake(
        "the generator not passed on to the loss",
        stepping(noise=lambda generator: None),
        "What is still drawn after the timesteps, and by whom?",
        "the argument `loss`",
    ),
    Mistake(
        "latents that are not scaled",
        stepping(scaled=False),
        "What stands between the VAE's latents and the UNet's?",
        STEP,
    ),
    Mistake(
        "latents with a gradient",
        stepping(gradient=True),
        "Is anything trained in the VAE, and what does its graph cost in memory?",
        STEP,
    ),
    Mistake(
        "a number, where a tensor with a gradient belongs",
        stepping(returned=lambda value: value.item()),
        "Who calls `backward`, and on what?",
        "part 7",
    ),
    Mistake(
        "`backward` called here already",
        stepping(returned=after_backward),
        "Whose task is the gradient: the loss's or the loop's?",
        "part 7",
    ),
)
