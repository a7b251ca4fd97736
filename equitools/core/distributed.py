"""Processes and ranks: every function is the identity, or nothing at all, on one process.

The process group is opened once, by whoever needs it first, from the variables that `torchrun`,
`accelerate launch` and `srun` set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
"""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from equitools.core import processes

T = TypeVar("T")
# Rank 0 may wait for the stage before it in the pipe for days; the others wait for rank 0.
PATIENCE = timedelta(days=30)


def start(device: str = "auto") -> None:
    """Join the process group that the launcher describes; nothing happens on one process."""
    if processes.launched() < 2 or dist.is_initialized():
        return
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else processes.rank()


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Is this the process that reads the pipe, writes files and prints?"""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: T) -> T:
    """Give every process the value (plain Python data) that rank 0 has."""
    start()
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def mean_across(value: Tensor) -> Tensor:
    """The mean of `value` over processes; without gradient when there are several."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def any_across(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Is the flag raised in any process?"""
    if world_size() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total > 0)


def everyones(value: T) -> list[T]:
    """What every process has for `value` (plain Python data), by rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(value: Tensor) -> Tensor:
    """Concatenate b … tensors over processes along the batch, with gradient to the local part.

    The gradient is that of a loss averaged over processes, as DistributedDataParallel averages it:
    each process receives the sum of all processes' gradients for its own rows.
    """
    if world_size() == 1:
        return value
    from torch.distributed.nn.functional import all_gather

    return torch.cat(tuple(all_gather(value)))


def gather_rows(value: Tensor) -> tuple[Tensor, list[int]]:
    """`gather` for n … tensors whose n differs between processes, with each process's n."""
    if world_size() == 1:
        return value, [len(value)]
    counts = [value.new_zeros(1, dtype=torch.long) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(value)], device=value.device))
    lengths = [int(count) for count in counts]
    if not any(lengths):
        return value, lengths
    missing = value.new_zeros(max(lengths) - len(value), *value.shape[1:])
    padded = gather(torch.cat([value, missing])).split(max(lengths))
    return torch.cat([part[:n] for part, n in zip(padded, lengths, strict=True)]), lengths


def sum_across(value: Tensor) -> Tensor:
    """The sum of `value` over processes, with the gradient that `gather` has: each process
    receives the sum of all processes' gradients."""
    if world_size() == 1:
        return value
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value)


def first_row(count: int) -> int:
    """Where this process's rows begin in what `gather` makes of `count` rows in each process."""
    return rank() * count if world_size() > 1 else 0
