"""Several processes that train one network, each on its share of every batch.

`torchrun` starts them; Lightning Fabric connects them. Alone, a process is the first of one.

No process decides by what it alone has seen (a file, a clock, a signal): all would have to decide
alike, or they wait for each other for ever. Such a value goes through `by_first` or `of_all`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

T = TypeVar("T")


def shares(batches: list[list[int]], fabric: Fabric) -> list[list[int]]:
    """This process's samples of each batch, as many as any other's: gradients are averaged over
    processes. What is left over of a batch that does not divide waits for another epoch."""
    rank, count = fabric.global_rank, fabric.world_size
    return [batch[rank : len(batch) - len(batch) % count : count] for batch in batches]


def parts_of(batches: list[list[int]], fabric: Fabric) -> list[tuple[list[int], bool]]:
    """This process's samples of each batch, and whether they count. All processes run a network as
    often, so one without samples is given another's, and they do not count."""
    rank, count = fabric.global_rank, fabric.world_size
    return [(batch[rank::count] or batch[:1], rank < len(batch)) for batch in batches]


def weight(samples: int, fabric: Fabric) -> Tensor | float:
    """What this process's mean counts in the mean over processes, so that each sample of all counts
    alike: 1, but where files that cannot be read leave some processes fewer samples."""
    if fabric.world_size == 1:
        return 1.0
    total = torch.tensor(float(samples), device=fabric.device)
    torch.distributed.all_reduce(total)
    return samples * fabric.world_size / total


def gathered(values: Tensor, fabric: Fabric) -> list[Any]:
    """A tensor (n, …) of every process, as lists of numbers, in one synchronisation."""
    if fabric.world_size == 1:
        return [values.tolist()]
    rows = [torch.empty_like(values) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(rows, values)
    return list(torch.stack(rows).tolist())


PATIENCE = timedelta(hours=2)
"""That processes wait for the first one, which may be unpacking ImageNet; not for one that is lost
later, while others hold their GPUs."""


def first_before_others(call: Callable[[], T], fabric: Fabric) -> T:
    """What `call` gives to each process; on each machine the first one makes it before the others,
    which then find what it has downloaded and unpacked."""
    if fabric.world_size == 1:
        return call()
    patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    found = [call()] if fabric.local_rank == 0 else []
    torch.distributed.barrier(patient)  # type: ignore[arg-type]
    return found[0] if found else call()


def as_in_first(network: nn.Module, fabric: Fabric) -> None:
    """Give all processes the first one's batch statistics, which are of its share of batches."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def of_all(value: T, fabric: Fabric) -> list[T]:
    """An object of every process, which stays on its device; for small ones."""
    if fabric.world_size == 1:
        return [value]
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, value)
    return found


def by_first(call: Callable[[], T], fabric: Fabric) -> T:
    """What `call` gives to the first process, which alone makes it, given to all. Where it raises,
    the others wait until `torchrun` ends them."""
    found = call() if fabric.is_global_zero else None
    result: T = fabric.broadcast(found)  # type: ignore[assignment]
    return result
