"""What the memory of a training step is spent on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from compiler.checkpointing import CheckpointTape
from compiler.engine.reversible import ReversibleTape
from compiler.engine.tape import Tape
from compiler.memory import LiveBytes, storage_of


@dataclass(frozen=True)
class Shares:
    """Bytes, by what they are for."""

    parameters: int = 0
    """And buffers, and an average of both where training keeps one."""
    gradients: int = 0
    """Of parameters."""
    optimizer: int = 0
    """Its state."""
    streams: int = 0
    """That stages keep, or rebuild."""
    information: int = 0
    """What exact arithmetic keeps of what updates lose."""
    saved: int = 0
    """For the backward pass: of stored activations, of results that are kept, and of the call that
    is replayed."""
    workspace: int = 0
    """Everything else: inputs, cotangents, results on their way."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Use:
    """Bytes of a training step."""

    peak: int
    """The most at any time of it."""
    steady: int
    """Between two steps."""
    shares: Shares
    """Of the peak."""


class Saved:
    """A tensor that the graph keeps for its backward pass, as it is."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Ledger(LiveBytes):  # type: ignore[no-untyped-call]
    """Live bytes, of which `shares` tells the parts after the operation `look_at`."""

    def __init__(
        self, network: nn.Module, optimizer: Optimizer, copies: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.copies = network, optimizer, copies
        self.saved: weakref.WeakSet[Saved] = weakref.WeakSet()
        self.look_at: int | None = None
        self.shares = Shares()

    def after(self, operation: int) -> None:
        """Look, where that is asked for. What the operation has hidden is workspace."""
        if operation == self.look_at:
            self.shares = shares(self.sizes, self)

    @contextmanager
    def keeping_track(self) -> Iterator[None]:
        """Within the block, what the graph saves is known."""

        def pack(tensor: Tensor) -> Saved:
            kept = Saved(tensor.detach())  # a result would hold the function that it is saved by
            self.saved.add(kept)
            return kept

        def give(kept: Saved) -> Tensor:
            return kept.tensor

        with saved_tensors_hooks(pack, give):
            yield


def peak_of(ledger: Ledger, step: Callable[[], None]) -> int:
    """The peak of a training step, which is found in one that is taken."""
    ledger.restart()
    with ledger.keeping_track():
        step()
    return ledger.peak


def used(ledger: Ledger, step: Callable[[], None]) -> Use:
    """What a training step uses. It is taken twice: to find the peak, and to look there."""
    peak = peak_of(ledger, step)
    steady, ledger.look_at = ledger.now, ledger.peak_at
    peak_of(ledger, step)
    ledger.look_at = None
    return Use(peak, steady, ledger.shares)


def shares(sizes: dict[int, int], ledger: Ledger) -> Shares:
    """How live storages, by their sizes, are shared out. One with two uses counts for the first of
    them."""
    network, left = ledger.network, dict(sizes)

    def taken(tensors: Iterable[Tensor]) -> int:
        return sum(left.pop(storage_of(tensor), 0) for tensor in tensors)

    tapes = [found for found in gc.get_objects() if issubclass(type(found), Tape)]
    state = [s for kept in ledger.optimizer.state.values() for s in kept.values()]
    return Shares(
        parameters=taken([*network.parameters(), *network.buffers(), *ledger.copies]),
        gradients=taken(p.grad for p in network.parameters() if p.grad is not None),
        optimizer=taken(s for s in state if isinstance(s, Tensor)),
        information=taken(t for tape in tapes for t in _information(tape)),
        streams=taken(t for tape in tapes for t in _streams(tape)),
        saved=taken([*(kept.tensor for kept in ledger.saved), *_captured(tapes)]),
        workspace=sum(left.values()) + ledger.peak - ledger.now,
    )


def _information(tape: Tape) -> list[Tensor]:
    found = [*tape.information.tensors()]
    if isinstance(tape, ReversibleTape):
        found += [] if tape.kept is None else tape.kept.tensors()
        found += _left(tape)[len(tape.names) :]
    if isinstance(tape, CheckpointTape):
        found += [t for c in tape.checkpoints.values() for t in c.information.tensors()]
    return found


def _streams(tape: Tape) -> list[Tensor]:
    found = list((tape.values or {}).values())
    if isinstance(tape, ReversibleTape):
        found += _left(tape)[: len(tape.names)]
    if isinstance(tape, CheckpointTape):
        found += [kept.tensor for c in tape.checkpoints.values() for kept in c.streams.values()]
    return found


def _left(tape: ReversibleTape) -> list[Tensor]:
    """What the door out of a stage keeps."""
    node = tape.exit() if tape.exit else None
    try:
        return list(node.saved_tensors) if node else []
    except RuntimeError:  # it has been let go
        return []


def _captured(tapes: Iterable[Tape]) -> Iterator[Tensor]:
    for tape in tapes:
        yield from (kept.tensor for kept in tape.kept_results.values())
        for group in (*tape.arithmetic, *(g for calls in tape.calls for g in calls)):
            for reference in group.handles:
                handle = reference()
                if handle is not None and handle.tensor is not None:
                    yield handle.tensor
