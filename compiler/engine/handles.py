"""What the graph holds in place of saved tensors."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compiler.engine.contexts import uncompiled
from compiler.engine.errors import CHANGED, ReplayError
from compiler.engine.modules import ModuleState
from compiler.engine.states import Drawn
from compiler.engine.versions import Kept


class Rebuilds(Protocol):
    """A tape, as handles know it."""

    def fetch(self, handle: Handle) -> Tensor:
        """The tensor behind a handle."""


class Handle:
    """Stands in the graph for a tensor that was not kept."""

    __slots__ = (
        "__weakref__",
        "group",
        "index",
        "is_kept",
        "kind",
        "result",
        "tape",
        "tensor",
        "version",
    )

    def __init__(self, tape: Rebuilds, group: Group, index: int, tensor: Tensor) -> None:
        self.tape, self.group, self.index = tape, group, index
        self.kind = kind_of(tensor)
        self.tensor: Tensor | None = None
        self.is_kept = False
        """The tensor stays from the forward pass on."""
        self.result: Kept | None = None
        """That of the call, where it is kept: for as long as anything is asked for of the call."""
        self.version = 0


Kind = tuple[torch.Size, torch.dtype, torch.device, tuple[int, ...]]


def kind_of(tensor: Tensor) -> Kind:
    """Shape, dtype, device and strides."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def same_kind(one: Kind, other: Kind) -> bool:
    """Whether two tensors are alike; dimensions of size 1, and of tensors without elements, have
    no stride to speak of."""
    return one == other or (
        one[:3] == other[:3]
        and all(
            s == t or n == 1 or 0 in one[0]
            for s, t, n in zip(one[3], other[3], one[0], strict=True)
        )
    )


@dataclass
class Group:
    """What the graph saves in one call, or in one step's arithmetic (`call` is then -1).

    Handles are held weakly: a node that has run, or that nobody needs, takes its tensors with it.
    """

    step: int
    call: int
    handles: list[weakref.ref[Handle]]
    needs_grad: tuple[bool, ...] = ()
    """Of the arguments."""
    result_needs_grad: bool = False
    module: ModuleState | None = None
    drawn: Drawn | None = None
    is_running: bool = False
    """The call's forward pass is under way."""

    @property
    def wanted(self) -> int:
        """How many tensors a replay has to save until none is missing that is asked for."""
        for number in range(len(self.handles), 0, -1):
            handle = self.handles[number - 1]()
            if handle is not None and not handle.is_kept:
                return number
        return 0

    @property
    def largest(self) -> int:
        """Bytes of the largest storage that is captured."""
        handles = (reference() for reference in self.handles)
        found = (handle.tensor for handle in handles if handle is not None)
        return max((t.untyped_storage().nbytes() for t in found if t is not None), default=0)

    def end(self) -> None:
        """End the forward pass of a call: let go of the tensors that it would have saved."""
        self.is_running = False
        for reference in self.handles:
            handle = reference()
            if handle is not None and not handle.is_kept:
                handle.tensor = None

    def keep_result(self, result: Tensor) -> Kept:
        """Keep the result of a call that is running, and its last tensors, as many as are smaller
        than half of that: masks, factors of norms. They come behind the last layer, which a replay
        would run to come by them. All of it goes when the last handle does."""
        kept = Kept(result.detach())
        self._keep_last(result)
        for reference in self.handles:
            handle = reference()
            if handle is not None:
                handle.result = kept
        return kept

    def _keep_last(self, result: Tensor) -> None:
        room = result.nbytes // 2
        for reference in reversed(self.handles):
            handle = reference()
            if handle is None or handle.tensor is None:
                continue
            room -= handle.tensor.untyped_storage().nbytes()
            if room < 0 or handle.tensor.shape[:1] != result.shape[:1]:  # a layer's weight, say
                return
            handle.is_kept = True

    def fill(self, saved: Sequence[tuple[Tensor, int]]) -> None:
        """Give the first handles what a replay has saved, with its versions."""
        for reference, (tensor, version) in zip(self.handles, saved, strict=False):
            handle = reference()
            if handle is not None and not handle.is_kept:
                handle.tensor, handle.version = tensor, version


@uncompiled
def unpack(packed: Handle | Kept) -> Tensor:
    """Give autograd a saved tensor: kept, or rebuilt by the tape."""
    if isinstance(packed, Kept):
        if packed.has_changed():
            raise ReplayError(CHANGED)
        return packed.tensor
    return packed.tape.fetch(packed)


@atexit.register
def _drain() -> None:
    """Run an empty backward pass, which drops what a failed one left in autograd's queue: handles
    that outlive the interpreter would crash it (seen on PyTorch 2.15)."""
    with suppress(RuntimeError):  # in a forked process, say
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
