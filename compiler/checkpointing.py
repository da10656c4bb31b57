"""Checkpointing: activations computed again, from streams that were kept before some layers.

While layers are recorded their streams are kept where a schedule says so. When backward first asks
for a handle of a layer, layers are replayed from the last checkpoint before it. Beside torch this
file imports the engine, exact arithmetic's information and the schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

from torch import Tensor, nn

from compiler.engine.contexts import check_refused, uncompiled
from compiler.engine.handles import Group, Handle, unpack
from compiler.engine.steps import Call, Layer, Permute, Update, Values, calls_of
from compiler.engine.tape import Tape
from compiler.engine.versions import Kept
from compiler.information import Information
from compiler.schedules import blocks, kept


@dataclass(frozen=True)
class Checkpoint:
    """The streams before a layer, and what exact arithmetic has kept so far."""

    streams: Mapping[str, Kept]
    information: Information


class CheckpointTape(Tape):
    """Keeps the streams before its first layer, and rebuilds by running all of them again."""

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
        self.starts = [0, *accumulate(len(layer.steps) for layer in layers)]
        """The number of each layer's first step, and that of the steps."""
        self.checkpoints: dict[int, Checkpoint] = {}
        """By the layer that the streams enter."""
        self.replayed = information
        """The information where the replay stands."""

    def record(self, values: Values) -> Values:
        """Run forward, keeping streams on the way."""
        final = super().record(values)
        self.information = Information()  # what comes after is for the layers after
        return final

    def enter(self, layer: int, streams: Values) -> None:
        """Keep the streams before the first layer."""
        if layer == 0:
            self.keep(layer, streams, self.information)

    def keep(self, layer: int, streams: Values, information: Information) -> None:
        """Keep the streams before a layer."""
        held = {name: Kept(stream.detach()) for name, stream in streams.items()}
        self.checkpoints[layer] = Checkpoint(held, information.copy())

    def stand_at(self, layer: int) -> None:
        """Stand before a layer whose streams are kept."""
        checkpoint = self.checkpoints[layer]
        self.values = {name: unpack(stream) for name, stream in checkpoint.streams.items()}
        self.replayed = checkpoint.information.copy()

    def exactly_again(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """The new value."""
        return compute(self.replayed)

    def materialise(self, handle: Handle) -> None:
        """Run everything again; each group on the way is captured."""
        self.stand_at(0)
        for layer in range(len(self.layers) - 1):
            self.replay(layer)
        self.replay_last(len(self.layers) - 1)
        self.leave()

    def replay(self, layer: int) -> None:
        """Run a layer again, from the streams where the replay stands."""
        streams = tuple(self.here)
        for index in range(self.starts[layer], self.starts[layer + 1]):
            self.replay_step(index)
        self.values = {name: self.here[name] for name in streams}

    def replay_last(self, layer: int) -> None:
        """Run a layer again after which no stream is wanted: no further than its last handles."""
        steps = range(self.starts[layer], self.starts[layer + 1])
        last = max((index for index in steps if self.has_handles(index)), default=steps.start)
        for index in range(steps.start, last):
            self.replay_step(index)
        if self.arithmetic[last].wanted:
            self.replay_step(last)
            return
        for index in reversed(range(len(self.calls[last]))):
            if (last, index) not in self.results:  # another one has needed it
                self.fill(last, index)
        self.forget_results(last)

    def has_handles(self, step: int) -> bool:
        """Whether backward asks for anything of a step."""
        return any(group.wanted for group in (self.arithmetic[step], *self.calls[step]))

    def replay_step(self, index: int) -> None:
        """Run a step again, in place on the streams where the replay stands."""
        values, step = self.here, self.steps[index][2]
        if isinstance(step, Permute):
            step.apply(values)
            return
        self.provide_calls(index)
        values[step.target] = self.replay_arithmetic(index)
        self.forget_results(index)

    def leave(self) -> None:
        """Let the streams go where the replay stands."""
        self.values, self.replayed = None, Information()


class BinomialTape(CheckpointTape):
    """Keeps the streams before at most `slots` layers at any time, and rebuilds one layer after
    another by the binomial schedule."""

    def __init__(
        self,
        layers: Sequence[Layer],
        draws: Sequence[Values],
        values: Values,
        information: Information,
        slots: int,
        results: int = 0,
    ) -> None:
        super().__init__(layers, draws, values, information, results=results)
        self.slots = slots
        # What follows the layers is undone first: the last step of the chain.
        self.planned = frozenset((0, *kept(len(layers) + 1, slots)))
        self.wanted = 0
        """The layer whose groups are captured."""

    def enter(self, layer: int, streams: Values) -> None:
        """Keep the streams where the schedule says so."""
        if layer in self.planned:
            self.keep(layer, streams, self.information)

    def materialise(self, handle: Handle) -> None:
        """Run forward to the handle's layer, keeping streams on the way in the slots that layers
        behind it have left, and replay that layer."""
        self.wanted, _, _ = self.steps[handle.group.step]
        self.drop_after(self.wanted)
        start, free = max(self.checkpoints), self.slots - len(self.checkpoints)
        planned = {start + n for n in kept(self.wanted + 1 - start, free + 1)}
        self.stand_at(start)
        for layer in range(start, self.wanted + 1):
            if layer in planned:
                self.keep(layer, self.here, self.replayed)
            if layer < self.wanted:
                self.replay(layer)
        self.replay_last(self.wanted)
        self.drop_after(self.wanted - 1)
        self.leave()

    def drop_after(self, layer: int) -> None:
        """Free the slots of later layers; the stage's own input stays."""
        self.checkpoints = {n: c for n, c in self.checkpoints.items() if n <= max(layer, 0)}

    def fill(self, step: int, index: int) -> None:
        """Of the wanted layer alone."""
        if self.steps[step][0] == self.wanted:
            super().fill(step, index)

    @contextmanager
    def capture(self, group: Group, until: int | None = None) -> Iterator[set[int]]:
        """Of the wanted layer alone. The others run under the same conditions, in which kernels
        are chosen, and nothing of them is kept."""
        if self.steps[group.step][0] == self.wanted:
            with super().capture(group, until) as captured:
                yield captured
        else:
            with self.conditions():
                yield set()


@uncompiled
def run_checkpointed(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    every: int = 1,
    results: int = 0,
) -> Values:
    """Run layers; backward runs `every` so many of them again together, from the streams kept
    before them, and, for exact updates that read it, the information kept so far. The results of so
    many calls, the last ones, are kept too."""
    check_refused(values)
    information = information or Information(keeps=False)
    for part in blocks(len(layers), every):
        own = max(0, results - len(calls_of(layers[part.stop :])))
        tape = CheckpointTape(layers[part], draws[part], values, information, part.start, own)
        values = tape.record(values)
    return values


def invoke_again(name: str, function: nn.Module, arguments: Sequence[Tensor]) -> Tensor:
    """As `invoke`, of one call outside of any layer: backward makes it again, from its arguments,
    which are kept."""
    names = [f"argument {index}" for index in range(len(arguments))]
    call = Call("result", name, tuple(itemgetter(each) for each in names))
    # The one stream that comes out takes the place of the first that went in.
    update = Update(names[0], (call,), forward=itemgetter("result"), inverse=None)
    layer = Layer((update,), {name: function}, {})
    values = run_checkpointed([layer], dict(zip(names, arguments, strict=True)), [{}])
    return values[names[0]]


@uncompiled
def run_binomial(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    *,
    slots: int,
    results: int = 0,
) -> Values:
    """As `run_checkpointed`; backward runs each layer again, from streams of which no more than
    `slots` are kept at any time."""
    check_refused(values)
    information = information or Information(keeps=False)
    return BinomialTape(layers, draws, values, information, slots, results).record(values)
