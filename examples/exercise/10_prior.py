"""Part 10: prior preservation.

DreamBooth calls a thing by a rare word and its class, "a photo of a sks toy", and trains the whole network. So that not
every toy becomes this one, pictures of the class are drawn before, and learned along, as "a photo of a toy":

    L = L_instance + lambda L_class

In the notes: `001`, "How Does DreamBooth Personalize Models?" and "How Does DreamBooth Avoid Forgetting?". Afterwards
compare with `minti/learning/dreambooth.py`.
Your picture: a small network that knew a sine learns one point anew; what becomes of the rest, with the prior and
without.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def prompts(template: str, rare_word: str, class_word: str) -> tuple[str, str]:
    """The thing's prompt and its class's, of a template with {} in it; "a photo of a {}" is one of several."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def prior_loss(loss: Callable[[Any], Tensor], instance: Any, prior: Any, weight: float) -> Tensor:
    """The sum of both losses, (), with the gradient of both.

    Args:
        loss: loss(batch) gives the mean squared error of a batch, ().
        instance, prior: a batch of the thing, and one of its class; they may have different sizes.
        weight: lambda.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
