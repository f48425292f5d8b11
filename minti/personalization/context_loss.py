"""Context loss (CoRe, arXiv 2408.15914): a new word should leave the meaning of the other words as it is.

For prompts that have no image, such as "a <cat> next to a star", the text encoder's output at the other words is kept
near that of the same prompt with the class word, "a cat next to a star". It needs no UNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.text import token_ids


def context_loss(model: StableDiffusion, placeholder: str, class_word: str, prompts: Sequence[str]) -> Tensor:
    """sum |c(S*)_i - c(class)_i|² / sum |c(class)_i|², over the words i behind the new word: () float32, 0 where the
    new word's vectors are the class word's. CLIP's text encoder is causal, so words before it never change.

    prompts: each with `{}` where the word goes, and with words behind it. Raises ValueError: none has any."""
    own, known = (len(token_ids(word, model.tokenizer, model.words)) for word in (placeholder, class_word))
    off, size = torch.zeros((), device=model.device), torch.zeros((), device=model.device)
    mine = encoded(model, [prompt.replace("{}", placeholder) for prompt in prompts])
    with torch.no_grad():
        theirs = encoded(model, [prompt.replace("{}", class_word) for prompt in prompts])
    for prompt, ours, right in zip(prompts, mine, theirs):
        before, behind = (len(token_ids(part, model.tokenizer, model.words)) for part in prompt.split("{}", 1))
        first = 1 + before  # behind the token of the beginning
        ours, right = ours[first + own :][:behind], right[first + known :][:behind]  # behind, d
        off, size = off + (ours - right).square().sum(), size + right.square().sum()
    if not size:
        raise ValueError("the context loss needs a prompt with words behind {}, such as 'a {} next to a star'")
    return off / size


def encoded(model: StableDiffusion, prompts: Sequence[str]) -> Tensor:
    """Prompts to context, (b, m, d) float32."""
    return model.encode_prompt(prompts).float()
