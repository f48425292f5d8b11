"""Context loss (CoRe, arXiv 2408.15914): a new word should leave the meaning of the other words as it is.

For prompts that have no image, such as "a <cat> next to a star", the text encoder's output at the other words is kept
near that of the same prompt with the class word, "a cat next to a star". It needs no UNet.
"""

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.text import token_ids


def context_loss(model: StableDiffusion, placeholder: str, class_word: str, prompts: Sequence[str]) -> Tensor:
    """sum |c(S*)_i - c(class)_i|² / sum |c(class)_i|², over the words i behind the new word: () float32, 0 where the
    new word's vectors are the class word's. CLIP's text encoder is causal, so words before it never change. While a
    `VectorTable` is attached, over all of its entries too.

    prompts: each with `{}` where the word goes, and with words behind it. Raises ValueError: none has any, or one is
    too long."""
    off, size = torch.zeros((), device=model.device), torch.zeros((), device=model.device)
    room = model.tokenizer.model_max_length
    said = [[prompt.replace("{}", word) for prompt in prompts] for word in (placeholder, class_word)]
    ids = [[token_ids(prompt, model.tokenizer, model.words) for prompt in some] for some in said]
    for prompt, each in zip(prompts, zip(*ids)):
        if max(map(len, each)) > room - 2:
            long = f"of the context loss is too long for the {room} tokens of the context with {placeholder}"
            raise ValueError(f"the prompt {short_repr(prompt)} {long}; shorten it, or give others (context_prompts)")
    mine = encoded(model, said[0])
    with torch.no_grad():
        theirs = encoded(model, said[1])
    for contexts, both in zip(zip(mine, theirs), zip(*ids)):
        pairs = zip(*map(reversed, both))  # tokens from the end on, as long as they are the same
        behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        ours, right = (
            context.unflatten(0, (-1, room))[:, 1 + len(tokens) - behind : 1 + len(tokens)]  # entries, behind, d
            for context, tokens in zip(contexts, both)
        )
        off, size = off + (ours - right).square().sum(), size + right.square().sum()
    if not size:
        raise ValueError("the context loss needs a prompt with words behind {}, such as 'a {} next to a star'")
    return off / size


def encoded(model: StableDiffusion, prompts: Sequence[str]) -> Tensor:
    """Prompts to context, (b, m, d) float32."""
    return model.encode_prompt(prompts).float()
