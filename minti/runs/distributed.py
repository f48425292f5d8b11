"""Distributed training and sampling (`torchrun --nproc-per-node N ...`); one process is a group of one.

All ranks draw the same random numbers and each does its share of the work, so that N ranks with one batch each learn
what one process with N accumulated batches learns. Only the adapter's gradient is exchanged, of a word a few kilobytes.
"""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start(device: str) -> str:
    """Joins the group that torchrun announces in the environment, if it does; its device ("cuda": a GPU)."""
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


class Processes:
    """The group of all ranks, as `minti.training.Trainer` takes it."""

    rank = property(lambda self: rank())
    size = property(lambda self: world_size())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        return add_up(tensor)


def stop() -> None:
    """Leaves the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0; rank 0 alone writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(part: list[T]) -> list[T]:
    """Everybody's list in the order of the ranks, one after the other; empty on all ranks but the first."""
    if world_size() == 1:
        return part
    parts = [None] * world_size() if rank() == 0 else None
    dist.gather_object(part, parts)
    return [item for one in parts or () for item in one]
