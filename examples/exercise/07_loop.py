"""Part 7: the loop (exercise E4, task 3a).

    repeat: draw a batch; its loss; clear old gradients; the loss's gradient; a step of the optimizer

Pictures, timesteps, noise and templates are drawn anew for every step; all that is in `draw`, and the prompt is encoded
in `loss`, since the word is another one after each step.

In the notes: `000`, task 3a; `001`, Algorithm 1; `002` 4.4; `003` 27. Afterwards compare with `minti/learning/loop.py`.
Your picture: a word of the toybox learned by your loop, with your loss if part 5 is solved: its curve, and below it two
of the pictures it was learned from and three drawn with it. Do not expect the curve to fall: a step's loss depends
far more on the timesteps that were drawn (part 5's picture) than on the word. Look at what is drawn.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def learn(steps: int, draw: Callable[[], Any], loss: Callable[[Any], Tensor], optimizer: Optimizer) -> list[float]:
    """Takes `steps` steps; the loss of each as a number.

    Args:
        draw: draw() gives a batch, another one at every call.
        loss: loss(batch) gives a tensor of shape (), with a gradient for what the optimizer trains.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
