"""The record of a forward pass, from which saved tensors are rebuilt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compiler.engine.contexts import inside_a_call
from compiler.engine.errors import OTHER_REPLAY, ReplayError
from compiler.engine.forward import (
    Direct,
    dtype_of,
    exact_map,
    execute,
    invoke,
    laid_out,
    layout_of,
    watch,
)
from compiler.engine.handles import Group, Handle, kind_of, same_kind, unpack
from compiler.engine.modules import Method, ModuleState, Substituted, needing_grad, swapping
from compiler.engine.replay import as_recorded
from compiler.engine.states import AutocastState, RandomState
from compiler.engine.steps import Layer, Map, Permute, Step, Update, Values, calls_of
from compiler.engine.versions import Kept, version_of
from compiler.information import Information


class Tape:
    """The record of one forward pass over some layers, from which saved tensors are rebuilt."""

    def __init__(
        self,
        layers: Sequence[Layer],
        draws: Sequence[Values],
        values: Values,
        information: Information,
        first: int = 0,
        results: int = 0,
    ) -> None:
        """`first` is the number of the first layer; what exact updates lose goes into
        `information`; the results of so many calls, the last ones, are kept."""
        self.draws, self.information, self.first = draws, information, first
        self.layout, self.dtype = layout_of(values), dtype_of(values)
        self.steps = [
            (n, i, s) for n, layer in enumerate(layers) for i, s in enumerate(layer.steps)
        ]
        self.layers = layers
        self.given = [
            {name: Kept(tensor) for name, tensor in {**layer.leaves, **drawn}.items()}
            for layer, drawn in zip(layers, draws, strict=True)
        ]
        self.leaves_need_grad = [
            [leaf.requires_grad for leaf in layer.leaves.values()] for layer in layers
        ]
        self.autocast = AutocastState(next(iter(values.values())).device)
        self.calls: list[list[Group]] = [[] for _ in self.steps]
        self.arithmetic: list[Group] = []
        self.needs_grad: list[dict[str, bool]] = []
        self.values: Values | None = None
        """Streams and temporaries where the replay stands."""
        self.results: dict[tuple[int, int], Tensor] = {}
        """Results of calls, until their step is done with."""
        self.keeps = frozenset(calls_of(layers)[-results:] if results else ())
        """The calls whose results stay from the forward pass on."""
        self.kept_results = WeakValueDictionary[tuple[int, int], Kept]()
        """What these are, in the dtype that the function gave. Handles hold them."""

    # Recording

    def record(self, values: Values) -> Values:
        """Run the layers forward under this tape."""
        values, recorder = laid_out(values, self.layout), Recorder(self)
        streams = tuple(values)
        with saved_tensors_hooks(recorder.pack, unpack):
            for layer_index, step_index, step in self.steps:
                layer = self.layers[layer_index]
                if step_index == 0:
                    values = {name: values[name] for name in streams}
                    self.enter(layer_index, values)
                    values.update(self.draws[layer_index])
                flags = {name: value.requires_grad for name, value in values.items()}
                execute(step, layer, values, recorder)
                watch(step, self.first + layer_index, values, self.information)
                if isinstance(step, Permute):
                    self.open_step()
                self.needs_grad.append(flags)
        recorder.information = Information()  # the hooks keep the recorder, and it must free this
        return {name: values[name] for name in streams}

    def enter(self, layer: int, streams: Values) -> None:
        """Called while recording, with the streams before each layer."""

    def open_step(self) -> tuple[Group, set[int]]:
        """Begin the next step; its arithmetic group, and the tensors kept as they are."""
        group = Group(len(self.arithmetic), -1, [])
        layer_index, _, _ = self.steps[len(self.arithmetic)]
        self.arithmetic.append(group)
        leaves = (*self.layers[layer_index].leaves.values(), *self.draws[layer_index].values())
        return group, {id(tensor) for tensor in leaves}

    def open_call(self, index: int, needs_grad: tuple[bool, ...], module: ModuleState) -> Group:
        """Begin a call of the current step."""
        step = len(self.arithmetic) - 1
        group = Group(step, index, [], needs_grad, module=module, is_running=True)
        self.calls[step].append(group)
        return group

    def keep_result(self, group: Group, result: Tensor) -> None:
        """Keep the result of a running call, if that is one of those."""
        if (group.step, group.call) in self.keeps:
            self.kept_results[group.step, group.call] = group.keep_result(result)

    # Replaying

    def fetch(self, handle: Handle) -> Tensor:
        """The tensor behind a handle. Replays the handle's group where it has not been."""
        if handle.tensor is None:
            with torch.no_grad():
                self.materialise(handle)
        tensor = handle.tensor
        assert tensor is not None
        if not handle.group.is_running and not handle.is_kept:
            handle.tensor = None
        if not same_kind(kind_of(tensor), handle.kind):
            raise ReplayError(OTHER_REPLAY)
        if version_of(tensor) != handle.version:
            raise ReplayError(
                "a tensor that a residual function needs for its gradient was changed in place "
                "inside that function"
            )
        return tensor

    def materialise(self, handle: Handle) -> None:
        """Fill the handles of a handle's group. Subclasses say how the streams there are found."""
        raise NotImplementedError

    def exactly_again(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """What stands for the new value of an exact update in a replay of its arithmetic."""
        raise NotImplementedError

    @property
    def here(self) -> Values:
        """Streams and temporaries where the replay stands, which it does."""
        assert self.values is not None
        return self.values

    def layer_of(self, step: int) -> Layer:
        """The layer that a step belongs to."""
        return self.layers[self.steps[step][0]]

    def scope(self, step: int) -> Values:
        """What a step reads: streams, temporaries, draws, coefficients, results so far."""
        layer_index, _, update = self.steps[step]
        assert not isinstance(update, Permute)
        scope = {**self.here, **self.draws[layer_index]}
        self.check_given(layer_index, update)
        for name in update.coefficients:
            scope[name] = self.layers[layer_index].coefficients[name]()
        for index, call in enumerate(update.calls):
            if (step, index) in self.results:
                scope[call.result] = self.results[step, index]
        return scope

    def check_given(self, layer: int, step: Update | Map) -> None:
        """Refuse coefficients of a step, learned or given, that have changed since the forward
        pass. Those of other steps may: an optimizer may run as soon as a gradient is there."""
        for name in (*step.coefficients, *self.draws[layer]):
            unpack(self.given[layer][name])

    def provide_calls(self, step: int) -> None:
        """Replay the calls of a step that have not been."""
        for index in range(len(self.calls[step])):
            if (step, index) not in self.results:
                self.replay_call(step, index)

    def replay_call(self, step: int, index: int) -> None:
        """Make one call again: the handles of its group are filled, and its result is known."""
        known = self.kept_results.get((step, index))
        if known is not None:
            self.fill(step, index)
            self.results[step, index] = unpack(known).to(self.dtype)
            return
        result = self.call_again(step, index, self.capture(self.calls[step][index]))
        assert result is not None
        self.results[step, index] = result.detach()

    def fill(self, step: int, index: int) -> None:
        """Make one call again, no further than the handles of its group want, where its result is
        known or nobody asks for it: what comes behind the last of them is a linear layer often."""
        group = self.calls[step][index]
        assert group.module is not None
        wanted = None if group.module.is_followed else group.wanted
        if wanted != 0:
            self.call_again(step, index, self.capture(group, wanted))

    def call_again(
        self, step: int, index: int, capture: AbstractContextManager[set[int]]
    ) -> Tensor | None:
        """The result of a call that is made as it was in the forward pass; None where the capture
        has ended it."""
        update, group = self.steps[step][2], self.calls[step][index]
        assert not isinstance(update, Permute)
        call = update.calls[index]
        for needed in call.after:
            if (step, needed) not in self.results:
                self.replay_call(step, needed)
        scope = self.scope(step)
        arguments = [
            argument(scope).detach().requires_grad_(needs)
            for argument, needs in zip(call.arguments, group.needs_grad, strict=True)
        ]
        function = self.layer_of(step).functions[call.function]
        with capture as kept, as_recorded(function, group, kept) as replay:
            return invoke(replay, arguments, self.dtype)
        return None

    def forget_results(self, step: int) -> None:
        """Drop the results of a step's calls."""
        for index in range(len(self.calls[step])):
            self.results.pop((step, index), None)

    def replay_arithmetic(self, step: int) -> Tensor:
        """Evaluate a step around its replayed calls, and fill the handles of its arithmetic."""
        layer_index, _, update = self.steps[step]
        assert not isinstance(update, Permute)
        group, needs = self.arithmetic[step], self.needs_grad[step]
        values = {
            name: value.detach().requires_grad_(needs.get(name, False))
            for name, value in self.here.items()
        }
        values.update(self.draws[layer_index])
        layer = self.layers[layer_index]
        self.check_given(layer_index, update)
        leaves, flags = tuple(layer.leaves.values()), self.leaves_need_grad[layer_index]
        with needing_grad(leaves, flags), self.capture(group) as kept:
            kept.update(id(t) for t in (*leaves, *self.draws[layer_index].values()))
            execute(update, layer, values, _Replayed(self, step))
        return values[update.target].detach()

    def through(
        self, step: int, map: nn.Module, way: Callable[[Tensor], Tensor], value: Tensor
    ) -> Tensor:
        """What a method of a step's map gives, by the parameters of the forward pass."""
        module = self.calls[step][0].module
        assert module is not None
        tensors = [*module.parameters, *module.buffers]
        result: Tensor = Substituted(Method(map, way), tensors)(value)
        return result

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Those of the forward pass, in which kernels are chosen: autocast, and gradients on."""
        with torch.enable_grad(), self.autocast.entered():
            yield

    @contextmanager
    def capture(self, group: Group, until: int | None = None) -> Iterator[set[int]]:
        """Fill a group's handles with what is saved inside; yields the ids of tensors kept. The
        block is left once `until` tensors are saved."""
        kept: set[int] = set()
        saved: list[tuple[Tensor, int]] = []
        enough = _Enough()

        def pack(tensor: Tensor) -> Tensor:
            if id(tensor) in kept:
                return tensor
            # Detached: the replayed graph holds this function, and must not hold itself.
            saved.append((tensor.detach(), version_of(tensor)))
            if len(saved) == until:
                raise enough
            return saved[-1][0]

        def give(tensor: Tensor) -> Tensor:
            return tensor

        try:
            with self.conditions(), saved_tensors_hooks(pack, give):
                yield kept
        except _Enough as reached:
            if reached is not enough:
                raise
            enough.__traceback__ = None  # its frames hold all that was computed
        if len(saved) != (len(group.handles) if until is None else until):
            raise ReplayError(OTHER_REPLAY)
        group.fill(saved)


class _Enough(BaseException):
    """Leaves a function of which nothing more is wanted; no `except Exception` in it stops this."""


class Recorder(Direct):
    """Runs steps forward while a tape takes down what the graph would save."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape.layout, tape.dtype, tape.information)
        self.tape = tape
        self.group: Group | None = None
        self.kept: set[int] = set()

    def pack(self, tensor: Tensor) -> Handle | Kept:
        """A handle in place of a tensor; what is alive anyway is kept as it is."""
        if id(tensor) in self.kept:
            return Kept(tensor)
        assert self.group is not None
        handle = Handle(self.tape, self.group, len(self.group.handles), tensor)
        self.group.handles.append(weakref.ref(handle))
        if self.group.is_running:  # a function may run a backward pass of its own
            handle.tensor, handle.version = tensor.detach(), version_of(tensor)
        return handle

    def arithmetic(self, step: Step) -> None:
        """Begin a step."""
        self.group, self.kept = self.tape.open_step()

    def call(
        self, step: Step, index: int, function: nn.Module, arguments: Sequence[Tensor]
    ) -> Tensor:
        """Run a call in a group of its own."""
        outer = self.group, self.kept
        with swapping:
            module = ModuleState(function)
        needs = tuple(argument.requires_grad for argument in arguments)
        self.group = self.tape.open_call(index, needs, module)
        self.kept = {id(tensor) for tensor in (*module.parameters, *module.buffers)}
        random = RandomState(arguments[0].device)
        versions = [version_of(argument) for argument in arguments]
        with swapping if module.counted else nullcontext(), inside_a_call():
            result: Tensor = function(*arguments)
        self.tape.keep_result(self.group, result)
        self.group.end()
        if [version_of(argument) for argument in arguments] != versions:
            raise ReplayError(
                f"the residual function {_name(step, index)} changes its argument in place; it "
                "must leave the streams as they are"
            )
        if module.buffers and module.has_changed():
            raise ReplayError(
                f"the residual function {_name(step, index)} changes one of its buffers in its "
                "forward pass, so a replay would not compute the same; use backward: store for "
                "this stage"
            )
        self.group.drawn = random.drawn()
        result = result.to(self.dtype)
        self.group.result_needs_grad = result.requires_grad
        self.group, self.kept = outer
        return result


def _name(step: Step, index: int) -> str:
    return "" if isinstance(step, Permute) else step.calls[index].function


class _Replayed(Direct):
    """Answers calls with the results of their replay, as leaves of the same kind."""

    def __init__(self, tape: Tape, step: int) -> None:
        super().__init__(tape.layout, tape.dtype, tape.information)
        self.tape, self.step = tape, step

    def call(
        self, step: Step, index: int, function: nn.Module, arguments: Sequence[Tensor]
    ) -> Tensor:
        """The replayed result."""
        needs = self.tape.calls[self.step][index].result_needs_grad
        return self.tape.results[self.step, index].detach().requires_grad_(needs)

    @torch.no_grad()
    def exactly(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """As the tape has it."""
        return self.tape.exactly_again(value, compute)

    @torch.no_grad()
    def map_exactly(self, step: Map, map: nn.Module, value: Tensor) -> Tensor:
        """By the parameters of the forward pass."""

        def advance(information: Information) -> Tensor:
            assert step.grid is not None
            way = partial(exact_map(map).advance, grid=step.grid, kept=information)
            return self.tape.through(self.step, map, way, value)

        return self.tape.exactly_again(value, advance)
