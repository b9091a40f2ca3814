"""Several processes, each with its own GPU and its own share of the batch, as `torchrun` starts them.

Without `torchrun` there is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

_LONGEST_WAIT = timedelta(hours=6)  # while the first process prepares or validates alone


def start(device: str) -> None:
    """Join the other processes, if `torchrun` started this one; its GPU becomes the one that "cuda" means."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_LONGEST_WAIT)


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(device: str) -> str:
    """This process's own GPU where `device` is "cuda" and there are several processes."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and count() > 1 else device


@contextmanager
def first_before_others() -> Iterator[None]:
    """What stands inside is done by the first process, and by the others only once it has finished."""
    if rank() != 0:
        dist.barrier()
    yield
    if rank() == 0 and count() > 1:
        dist.barrier()


def broadcast(network: nn.Module) -> None:
    """Give every process the first one's weights and statistics."""
    if count() > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if count() > 1:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= count()
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def any_true(value: bool) -> bool:
    """Whether `value` is true in any process: so that all stop, or save, together."""
    if count() == 1:
        return value
    flag = torch.tensor(float(value), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
