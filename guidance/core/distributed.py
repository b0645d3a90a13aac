"""One process, or several started by torchrun: how they share work and exchange values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process has the number `rank` of `count`; a single process sends nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether batch `number` belongs to this process."""
        return number % self.count == self.rank

    def check(self, batch_size: int, parts: int) -> None:
        """Raises ValueError if a batch cannot be split evenly into `parts` parts per process."""
        if batch_size % (self.count * parts):
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of {self.count * parts} "
                f"({self.count} processes, {parts} parts each)."
            )

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows."""
        return batch.tensor_split(self.count)[self.rank]

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes."""
        if self.count == 1:
            return network
        device = next(network.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number () over the processes, on its device."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def from_first(self, value: Any) -> Any:
        """The value of the first process."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


ALONE = Processes()


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """The processes started by torchrun, connected during the block; else this one alone."""
    if not dist.is_available() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
