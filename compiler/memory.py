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
        self.peak_at = 0
        """The number of the operation, since the start, in which the peak was come to."""
        self.sizes: dict[int, int] = {}
        """Of each storage that is alive, by what `storage_of` gives; 0 of one that is ignored."""
        self._sum = 0
        self._operations = 0

    @property
    def average(self) -> int:
        """The mean of `now` over the operations since the start."""
        return self._sum // max(1, self._operations)

    def restart(self) -> None:
        """Forget the peak and the average so far; what is alive stays counted."""
        self.peak, self.peak_at, self._sum, self._operations = self.now, 0, 0, 0

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these tensors' storages out of the count."""
        self.sizes |= {storage_of(tensor): 0 for tensor in tensors}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors' storages, which were made before."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())
        self._reach(self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self._reach(self.now + self.hidden(func, args))
        self.after(self._operations)
        self._sum += self.now
        self._operations += 1
        return result

    def hidden(self, func: Any, args: Any) -> int:
        """The bytes that an operation takes for itself while it runs: 0 here, as none is told."""
        return 0

    def after(self, operation: int) -> None:
        """Called after each operation, with its number since the start."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, self.size_of(storage)
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        # Weakly: a storage that is never freed must not keep what counts it, and all that it knows.
        weakref.finalize(storage, _free, weakref.ref(self), key, size).atexit = False

    def size_of(self, storage: torch.UntypedStorage) -> int:
        """Bytes of a storage: those that it holds."""
        return storage.nbytes()

    def _reach(self, size: int) -> None:
        if size > self.peak:
            self.peak, self.peak_at = size, self._operations


def _free(counter: weakref.ref[LiveBytes], key: int, size: int) -> None:
    if (live := counter()) is not None:
        del live.sizes[key]
        live.now -= size


def storage_of(tensor: Tensor) -> int:
    """What tells a storage from others that are alive."""
    key: int = tensor.untyped_storage()._cdata
    return key


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
