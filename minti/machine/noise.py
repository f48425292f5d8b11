"""Drawing noise: every random number of minti comes from a `torch.Generator` that the caller hands in."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal noise, drawn on the generator's device and moved to `device`.

    Args:
        shape: (b, ...).
        generator: one generator draws the batch in one go, as diffusers does; a list draws picture i from generator i,
            so that a picture does not depend on its neighbours in the batch; None uses torch's global generator.

    Raises ValueError: a list whose length is not b.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(
                f"{len(generator)} generators for a batch of {shape[0]}; give one, or one for each picture"
            )
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
