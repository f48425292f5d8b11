"""Part 7: the training loop (exercise E4, task 3a).

    repeat: sample a batch; its loss; clear the old gradients; the loss's gradient; an optimizer step

Every step has a new batch: images, timesteps, noise and templates. `draw` samples all of these. `loss` also encodes the
prompts, because the embedding vectors change with every step.

In the notes: exercise E4 `000`, task 3a; slides `001`, Algorithm 1; lecture notes `002`, 4.4; question 27 of `003`,
"Explain gradient accumulation strategies". Afterwards compare with `minti/training.py`: `Trainer`.
Your image: the toybox learns a new word with your loop, and with your loss if part 5 is solved. Above, the validation
loss, which is computed on the same images, timesteps and noise every time; below, two training images and three samples
with the word. The loss of a single step would say little: it depends far more on the timesteps of its batch (see part
5's image) than on the word.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def learn(steps: int, draw: Callable[[], Any], loss: Callable[[Any], Tensor], optimizer: Optimizer) -> list[float]:
    """Takes `steps` optimizer steps; returns the loss of each as a number.

    Args:
        draw: draw() returns a batch, a new one at every call.
        loss: loss(batch) returns a tensor of shape (), with a gradient for what the optimizer trains.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
