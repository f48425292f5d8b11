"""Part 10: prior preservation, as in DreamBooth.

DreamBooth names a subject by a rare word and its class, "a photo of a sks toy", and trains the whole network. So that
not every toy turns into this one, images of the class are sampled beforehand, and learned together with the subject, as
"a photo of a toy":

    L = L_instance + lambda L_class

In the notes: slides `001`, "How Does DreamBooth Personalize Models?" and "How Does DreamBooth Avoid Forgetting?".
Afterwards compare with `minti/personalization/dreambooth.py`.
Your image: a small network that has learned a sine is trained on one new point. What becomes of the rest of the curve,
with the prior's loss and without it?
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def prompts(template: str, rare_word: str, class_word: str) -> tuple[str, str]:
    """The prompt of the subject and that of its class, from a template with {} in it, such as "a photo of a {}"."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def prior_loss(loss: Callable[[Any], Tensor], instance: Any, prior: Any, weight: float) -> Tensor:
    """The sum of both losses, (), with the gradient of both.

    Args:
        loss: loss(batch) returns the mean squared error of a batch, ().
        instance, prior: a batch of the subject, and one of its class; their sizes may differ.
        weight: lambda.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
