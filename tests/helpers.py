"""What several tests share."""

import torch


def pictures(n=3, seed=0):
    """Random pictures to learn from, (n, 3, 16, 16) in [-1, 1]."""
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
