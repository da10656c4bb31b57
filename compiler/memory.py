"""Counting the bytes of live tensors, operation by operation.

Unlike the process's memory, this is exact and the same on every run: it follows each storage that
an operation makes until it is freed. It counts CPU, CUDA, meta and fake tensors alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, `now` is the number of bytes in storages made since it was entered and
    still alive, and `peak` the largest that `now` has been."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._sum = 0
        self._operations = 0
        self._known: set[int] = set()

    @property
    def average(self) -> int:
        """The mean of `now` over the operations since the start."""
        return self._sum // max(1, self._operations)

    def restart(self) -> None:
        """Forget the peak and the average so far; what is alive stays counted."""
        self.peak, self._sum, self._operations = self.now, 0, 0

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these tensors' storages out of the count."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self._sum += self.now
        self._operations += 1
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step: kept between forward and backward, and the most at any time.
    Parameters, their gradients and the input are left out of both."""

    kept: int
    peak: int


def step_memory(
    model: nn.Module, make_loss: Callable[[Tensor], Tensor], value: Tensor
) -> StepMemory:
    """Measure one forward and backward pass of `model` on `value`."""
    for parameter in model.parameters():
        # Gradients are there beforehand, so that making them does not count.
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with LiveBytes() as live:
        live.ignore([*model.parameters(), *model.buffers(), *gradients, value])
        loss = make_loss(model(value))
        kept = live.now
        loss.backward()  # type: ignore[no-untyped-call]
        return StepMemory(kept, live.peak)
