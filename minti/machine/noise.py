"""Drawing noise: every random number of minti comes from a `torch.Generator` that the caller hands in."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal noise, (b, ...), drawn on the generator's device and moved to `device`.

    One generator draws the batch in one go, as diffusers does; of a list generator i draws picture i, which then does
    not depend on its neighbours in the batch; None is torch's global one. Raises ValueError: a list of another length.
    """
    if isinstance(generator, Sequence):
        if (count := len(generator)) != shape[0]:
            raise ValueError(f"{count} generators for a batch of {shape[0]}; give one, or one for each picture")
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
