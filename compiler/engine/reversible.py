"""The reversible strategy: streams are rebuilt by undoing steps, from the last one on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compiler.engine.contexts import check_refused, uncompiled
from compiler.engine.errors import CHANGED, OTHER_REPLAY, ReplayError
from compiler.engine.forward import settled
from compiler.engine.handles import Group, Handle, unpack
from compiler.engine.inversion import inverse_of, recovered
from compiler.engine.steps import Layer, Map, Permute, Update, Values, calls_of, definition_of
from compiler.engine.tape import Tape
from compiler.engine.versions import Kept
from compiler.information import Information
from compiler.schedules import blocks


class ReversibleTape(Tape):
    """Rebuilds streams by undoing steps, from the final streams backwards."""

    def __init__(
        self,
        layers: Sequence[Layer],
        draws: Sequence[Values],
        values: Values,
        information: Information,
        first: int = 0,
        results: int = 0,
    ) -> None:
        super().__init__(layers, draws, values, information, first, results)
        self.kept: Information | None = None
        """The side information where the replay stands."""
        self.position = 0
        """How many steps are not undone."""
        self.waiting: set[tuple[int, int]] = set()
        """The groups (step, call) that this pass has not captured yet."""
        self.exit: weakref.ref[Any] | None = None
        self.final: list[Kept] = []
        """What the exit saves, where the graph of a gradient may outlive it."""
        self.names: tuple[str, ...] = ()

    def leave(self, final: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The final streams, and the tensors of the information: for the exit to keep, and to
        free."""
        tensors = self.information.tensors()
        nothing = torch.empty(0)
        self.information = self.information.with_tensors([nothing] * len(tensors))
        return (*final, *tensors)

    def restart(self, left: Sequence[Tensor]) -> None:
        """Stand at the end of the layers, with what `leave` gave."""
        final, tensors = left[: len(self.names)], left[len(self.names) :]
        self.values = {n: t.detach() for n, t in zip(self.names, final, strict=True)}
        self.kept = self.information.with_tensors(tensors)
        self.position = len(self.steps)
        self.results.clear()
        groups = (*self.arithmetic, *(group for calls in self.calls for group in calls))
        self.waiting = {(group.step, group.call) for group in groups if group.wanted}

    def materialise(self, handle: Handle) -> None:
        """Undo every step after the group's own, then replay the group, unless that happened on
        the way: the group of a temporary is captured where the temporary is used."""
        group = handle.group
        if self.values is None or group.step >= self.position:
            self.restart(self.final_streams())
        while self.position > group.step + 1:
            self.undo()
        is_map = isinstance(self.steps[group.step][2], Map)  # it is replayed as it is undone
        if handle.tensor is None and group.call >= 0 and not is_map:
            self.provide_temporaries(group.step)
            self.replay_call(group.step, group.call)
            self.undo_replayed(group.step)
        elif handle.tensor is None:
            self.undo(again=True)
        if not self.waiting:  # nothing is left to replay: let the streams go
            self.values = self.kept = None
            self.results.clear()

    def undo_replayed(self, step: int) -> None:
        """Undo an update once nothing more is asked for at it, so that the results of its calls
        need not stay until their gradients are there: where these take more than undoing does, of
        which the largest tensor that was captured and the stream tell."""
        update = self.steps[step][2]
        if not isinstance(update, Update) or update.is_temporary or self.position != step + 1:
            return
        is_known = all((step, index) in self.results for index in range(len(self.calls[step])))
        if not is_known or not self.waiting or self.arithmetic[step].wanted:
            return
        if max(group.largest for group in self.calls[step]) >= 2 * self.here[update.target].nbytes:
            self.undo()

    def exactly_again(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """Anything: the new value is known, and only what is saved on the way is wanted."""
        return value

    @contextmanager
    def capture(self, group: Group, until: int | None = None) -> Iterator[set[int]]:
        """As for any tape; what is captured is waited for no longer."""
        with super().capture(group, until) as kept:
            yield kept
        self.waiting.discard((group.step, group.call))

    def final_streams(self) -> tuple[Tensor, ...]:
        """What the exit saves, while the graph keeps it."""
        if self.final:
            return tuple(unpack(kept) for kept in self.final)
        node = self.exit() if self.exit else None
        try:
            streams: tuple[Tensor, ...] = node.saved_tensors if node else ()
        except RuntimeError as error:
            raise ReplayError(_PAST) from error
        if not streams:
            raise ReplayError(_PAST)
        return streams

    def undo(self, again: bool = False) -> None:
        """Take back the last step that is not undone, its groups captured on the way; `again`
        captures those of a temporary a second time."""
        index = self.position - 1
        _, _, step = self.steps[index]
        values = self.here
        if isinstance(step, Permute):
            step.undo(values)
            self.position = index
            return
        if isinstance(step, Map):
            values[step.target] = settled(self.unmapped(index, step), self.layout)
            if self.calls[index][0].handles:
                self.replay_call(index, 0)
        elif step.is_temporary:
            if again:
                values.pop(step.target, None)
            self.provide_temporary(index)
            del values[step.target]
        else:
            self.provide_temporaries(index)
            self.provide_calls(index)
            assert self.kept is not None
            old = recovered(step, self.scope(index), self.kept)
            values[step.target] = settled(old, self.layout)
            if self.arithmetic[index].handles:
                self.replay_arithmetic(index)
        self.forget_results(index)
        self.position = index
        if index == 0 and self.kept is not None and not self.kept.is_spent:
            raise ReplayError(OTHER_REPLAY)

    def unmapped(self, index: int, step: Map) -> Tensor:
        """The old value of a map's target, by the parameters of the forward pass."""
        module = self.calls[index][0].module
        assert module is not None
        if module.has_changed():
            raise ReplayError(CHANGED)
        assert self.kept is not None
        map = self.layer_of(index).functions[step.map]
        way = inverse_of(step, map, self.kept)
        return self.through(index, map, way, self.here[step.target])

    def provide_temporaries(self, step: int) -> None:
        """Compute again the temporaries that a step reads."""
        _, step_index, update = self.steps[step]
        assert isinstance(update, Update)
        start = step - step_index
        for name in update.temporaries:
            self.provide_temporary(start + definition_of(self.layer_of(start), name)[0])

    def provide_temporary(self, step: int) -> None:
        """Compute again the temporary that a step defines, its groups captured."""
        definition, values = self.steps[step][2], self.here
        assert isinstance(definition, Update)
        if definition.target in values:
            return
        self.provide_temporaries(step)
        self.provide_calls(step)
        if self.arithmetic[step].handles:
            values[definition.target] = self.replay_arithmetic(step)
        else:
            value = definition.forward(self.scope(step))
            values[definition.target] = settled(value, self.layout)
        self.forget_results(step)


_PAST = (
    "a reversible stage was asked for an activation a second time, after its final streams were "
    "freed: give backward(retain_graph=True), or, in an autograd.Function inside a residual "
    "function, read ctx.saved_tensors once"
)


class _Exit(torch.autograd.Function):
    """The one door out of a reversible stage. Saves the final streams and the side information, and
    stands its tape at the end of the stage when a backward pass comes through."""

    @staticmethod
    def forward(ctx: Any, tape: ReversibleTape, *streams: Tensor) -> tuple[Tensor, ...]:
        """The streams as they are."""
        ctx.save_for_backward(*tape.leave(streams))
        ctx.mark_non_differentiable(*(s for s in streams if not s.requires_grad))
        ctx.set_materialize_grads(False)
        ctx.tape = weakref.ref(tape)  # it lives as long as a handle asks for it
        tape.exit = weakref.ref(ctx)
        return streams

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The cotangents as they are."""
        left, tape = ctx.saved_tensors, ctx.tape()
        if tape is not None:
            tape.restart(left)
            if torch.is_grad_enabled():  # a gradient of the gradient need not come this way
                tape.final = [Kept(tensor.detach()) for tensor in left]
        return (None, *cotangents)


@uncompiled
def run_reversible(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    every: int | None = None,
    results: int = 0,
) -> Values:
    """Run layers; backward rebuilds activations from the final streams, and, of exact updates, from
    what they lose, which goes into `information`. The streams after `every` so many layers are
    kept, and rebuilt from. The results of so many calls, the last ones, are kept too: their
    replays end where nothing but the result is left to compute."""
    check_refused(values)
    kept = information or Information()
    for part in blocks(len(layers), every or len(layers)):
        own = max(0, results - len(calls_of(layers[part.stop :])))
        values = _run_reversible(layers[part], values, draws[part], kept, part.start, own)
    return values


def _run_reversible(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information,
    first: int,
    results: int,
) -> Values:
    tape = ReversibleTape(layers, draws, values, information, first, results)
    tape.names = tuple(values)
    final = tape.record(values)
    if not any(stream.requires_grad for stream in final.values()):
        return final
    leaving: tuple[Tensor, ...] = _Exit.apply(tape, *final.values())
    return dict(zip(tape.names, leaving, strict=True))
