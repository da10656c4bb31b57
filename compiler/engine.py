"""The backward engine: activations replaced by handles, rebuilt when autograd asks for them.

Autograd stays autograd. While a stage runs forward, every tensor that a node would save for
backward is replaced by a `Handle` (`torch.autograd.graph.saved_tensors_hooks`). When backward
first asks for a handle, the engine walks the stage's program backwards from its final streams to
the update in question, replays the residual function there, and fills the handles with what the
replay saves. The graph is the real one, so hooks, accumulation, frozen parameters and gradients of
gradients need no special case.

Beside torch this file imports the two of exact arithmetic alone. What computes activations again
from streams that were kept is in `compiler/checkpointing.py`.

A *step* is one update of one layer. What a step saves falls into groups: one for each *call* of a
residual function, and one for the *arithmetic* around them. A group is captured as a whole.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from compiler.exact import Exact, ExactMap, Grid, StraightThrough
from compiler.information import Information

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

Values = dict[str, Tensor]
"""Streams, temporaries, coefficients and results of calls, by name."""


class ReplayError(RuntimeError):
    """What would be a wrong gradient, refused."""


# Programs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a residual function. `after` lists the calls of the same step whose results its
    arguments read."""

    result: str
    function: str
    arguments: tuple[Callable[[Values], Tensor], ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Update:
    """`target` is rewritten by `forward`; `inverse` gives its old value from its new one and all
    else that `forward` read. A temporary is an update of a name that is no stream."""

    target: str
    calls: tuple[Call, ...]
    forward: Callable[[Values], Tensor]
    inverse: Callable[[Values], Tensor] | None
    coefficients: tuple[str, ...] = ()
    temporaries: tuple[str, ...] = ()
    is_temporary: bool = False
    exact: Exact | None = None
    """How it is computed instead, both ways, where the stage's arithmetic is exact."""
    rounds: bool = False
    """It has no inverse, and its value is rounded to the grid of exact arithmetic."""


@dataclass(frozen=True)
class Permute:
    """`targets[i]` gets what `sources[i]` held."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Map:
    """`target` goes through an invertible map: a module with an `inverse` of its own, which is
    named among the functions of the layer."""

    target: str
    map: str
    coefficients: tuple[str, ...] = ()
    temporaries: tuple[str, ...] = ()
    grid: Grid | None = None
    """Where the stage's arithmetic is exact, and the map not exact by itself: then the module has
    `advance` and `retreat`, which are."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The one call, at the old value of the target."""
        return (Call(self.map, self.map, (lambda values: values[self.target],)),)


Step = Update | Permute | Map


@dataclass(frozen=True)
class Layer:
    """The steps of one layer, with its own functions and coefficients."""

    steps: tuple[Step, ...]
    functions: Mapping[str, nn.Module]
    coefficients: Mapping[str, Callable[[], Tensor]]
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    """The parameter that each coefficient is computed from."""


# Forward -----------------------------------------------------------------------------------------


class Direct:
    """Evaluates calls as they come: for stored activations, and where no gradient is wanted."""

    def __init__(
        self, layout: torch.memory_format, dtype: torch.dtype, information: Information
    ) -> None:
        self.layout, self.dtype, self.information = layout, dtype, information

    def arithmetic(self, step: Step) -> None:
        """Called before a step's calls and the arithmetic around them."""

    def call(
        self, step: Step, index: int, function: nn.Module, arguments: Sequence[Tensor]
    ) -> Tensor:
        """The result of one call, in the dtype of the streams."""
        return invoke(function, arguments, self.dtype)

    @torch.no_grad()
    def exactly(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """What exact arithmetic makes of a stream's old value."""
        return compute(self.information)

    @torch.no_grad()
    def map_exactly(self, step: Map, map: nn.Module, value: Tensor) -> Tensor:
        """What a map makes of a stream, exactly."""
        assert step.grid is not None
        return _exact_map(map).advance(value, step.grid, self.information)


def invoke(function: nn.Module, arguments: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Call a residual function; its result takes the dtype of the streams (under autocast the
    function computes in half precision, and streams stay as they are)."""
    result: Tensor = function(*arguments)
    return result.to(dtype)


def execute(step: Step, layer: Layer, values: Values, tracer: Direct) -> None:
    """Run one step forward, in place on `values`."""
    if isinstance(step, Permute):
        values.update(zip(step.targets, [values[s] for s in step.sources], strict=True))
        return
    tracer.arithmetic(step)
    if isinstance(step, Map):
        old, map = values[step.target], layer.functions[step.map]
        mapped = tracer.call(step, 0, map, [old])
        if step.grid is not None:
            new = tracer.map_exactly(step, map, old.detach())
            mapped = StraightThrough.apply(new, mapped, 1.0, new)
        values[step.target] = settled(mapped, tracer.layout)
        return
    scope = dict(values)
    for name in step.coefficients:
        scope[name] = layer.coefficients[name]()
    for index, call in enumerate(step.calls):
        arguments = [argument(scope) for argument in call.arguments]
        scope[call.result] = tracer.call(step, index, layer.functions[call.function], arguments)
    value = step.forward(scope) if step.exact is None else advanced(step.exact, step, scope, tracer)
    values[step.target] = settled(value, tracer.layout)


def advanced(exact: Exact, step: Update, scope: Values, tracer: Direct) -> Tensor:
    """The new value of an exact update, with the gradients of its formula."""
    old, scale, change = scope[step.target], exact.scale(scope), exact.rest(scope)
    new = tracer.exactly(old, partial(exact.form.advance, old, scale, change, exact.grid))
    value: Tensor = StraightThrough.apply(new, old, scale, change)
    return value


def _exact_map(map: nn.Module) -> ExactMap:
    assert isinstance(map, ExactMap)
    return map


def layout_of(values: Values) -> torch.memory_format:
    """The memory layout that all streams of a stage keep, forward and back (convolutions differ
    bitwise between layouts): that of the first stream of images."""
    first = next((value for value in values.values() if value.dim() == 4), None)
    # By strides: a chunk of the channels of such images is not contiguous in either layout.
    if first is not None and first.stride(1) == 1 and first.shape[1] > 1 and first.stride(3) > 1:
        return torch.channels_last
    return torch.contiguous_format


def dtype_of(values: Values) -> torch.dtype:
    """The dtype of the streams: that of the first, and streams come first."""
    return next(iter(values.values())).dtype


def laid_out(values: Values, layout: torch.memory_format) -> Values:
    """Every stream in one memory layout."""
    return {name: settled(value, layout) for name, value in values.items()}


def settled(value: Tensor, layout: torch.memory_format) -> Tensor:
    """A stream in a memory layout; only images (B, C, H, W) have a choice."""
    if value.dim() != 4:
        return value.contiguous()
    return value.contiguous(memory_format=layout)


def run(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
) -> Values:
    """Run layers forward as plain autograd would. `draws` holds each layer's drawn coefficients;
    what exact updates lose goes into `information`."""
    direct = Direct(layout_of(values), dtype_of(values), information or Information(keeps=False))
    values = laid_out(values, direct.layout)
    streams = tuple(values)
    for number, (layer, drawn) in enumerate(zip(layers, draws, strict=True)):
        values.update(drawn)
        for step in layer.steps:
            execute(step, layer, values, direct)
            watch(step, number, values, direct.information)
        values = {name: values[name] for name in streams}
    return values


def watch(step: Step, layer: int, values: Values, information: Information) -> None:
    """Take down how large an exact update has made its stream."""
    if isinstance(step, Permute):
        return
    if step.grid if isinstance(step, Map) else step.exact or step.rounds:
        information.watch(layer, step.target, values[step.target])


def invert(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
) -> Values:
    """Run the inverse program: from the streams after the last layer to those before the first.
    Exact updates read `information`, and leave it as it is."""
    kept = information.copy() if information else Information()
    try:
        values = unwind(layers, values, draws, kept)
    except KeyError as error:  # of a shape, or of a stream
        raise ReplayError(OTHER_INFORMATION) from error
    if not kept.is_spent:
        raise ReplayError(OTHER_INFORMATION)
    return values


OTHER_INFORMATION = (
    "what exact arithmetic has kept does not belong to these streams: it was not all read again on "
    "the way back. Give `inverse` the outputs, the draws and the information of one forward pass"
)


def unwind(
    layers: Sequence[Layer], values: Values, draws: Sequence[Values], kept: Information
) -> Values:
    """As `invert`; what exact updates read leaves `kept`."""
    layout = layout_of(values)
    values = laid_out(values, layout)
    streams = tuple(values)
    for layer, drawn in zip(reversed(layers), reversed(draws), strict=True):
        values.update(drawn)
        for index in reversed(range(len(layer.steps))):
            _undo(layer, index, values, kept, layout)
        values = {name: values[name] for name in streams}
    return values


def _undo(
    layer: Layer, index: int, values: Values, kept: Information, layout: torch.memory_format
) -> None:
    step = layer.steps[index]
    if isinstance(step, Permute):
        values.update(zip(step.sources, [values[t] for t in step.targets], strict=True))
    elif isinstance(step, Map):
        inverse = _inverse_of(step, layer.functions[step.map], kept)
        values[step.target] = settled(inverse(values[step.target]), layout)
    elif step.is_temporary:
        values.pop(step.target, None)
    else:
        _provide_temporaries(layer, index, values)
        value = recovered(step, _scope(layer, step, values), kept)
        values[step.target] = settled(value, layout)


def recovered(step: Update, scope: Values, kept: Information) -> Tensor:
    """The old value of a step's target."""
    if step.exact is not None:
        return step.exact.retreat(scope, step.target, kept)
    assert step.inverse is not None
    return step.inverse(scope)


def _inverse_of(step: Map, map: nn.Module, kept: Information) -> Callable[[Tensor], Tensor]:
    if step.grid is not None:
        return partial(_exact_map(map).retreat, grid=step.grid, kept=kept)
    inverse: Callable[[Tensor], Tensor] = map.inverse  # type: ignore[assignment]
    return inverse


def _provide_temporaries(layer: Layer, index: int, values: Values) -> None:
    step = layer.steps[index]
    assert isinstance(step, Update)
    for name in step.temporaries:
        if name not in values:
            where, definition = _definition(layer, name)
            _provide_temporaries(layer, where, values)
            values[name] = definition.forward(_scope(layer, definition, values))


def _scope(layer: Layer, step: Update, values: Values) -> Values:
    """Everything a step reads, its calls evaluated."""
    scope = dict(values)
    for name in step.coefficients:
        scope[name] = layer.coefficients[name]()
    for call in step.calls:
        arguments = [argument(scope) for argument in call.arguments]
        function = _uncounted(layer.functions[call.function])
        scope[call.result] = invoke(function, arguments, dtype_of(values))
    return scope


def _uncounted(function: nn.Module) -> nn.Module:
    """A function whose batch normalisation counts no statistics: they are the forward pass's."""
    parameters, buffers, _ = _contents(function)
    if not buffers:
        return function
    return _Substituted(function, [*parameters, *(buffer.clone() for buffer in buffers)])


def _definition(layer: Layer, name: str) -> tuple[int, Update]:
    for index, step in enumerate(layer.steps):
        if isinstance(step, Update) and step.is_temporary and step.target == name:
            return index, step
    raise AssertionError(f"no temporary {name}")


# Under torch.compile -----------------------------------------------------------------------------


def uncompiled(function: AnyFunction) -> AnyFunction:
    """`function`, left alone by torch.compile: it sets hooks and generators, and reads versions.
    Compiled modules that it calls stay compiled. `torch.compiler.disable` takes a second to import,
    and so waits until something is compiled."""
    disabled: list[AnyFunction] = []

    @functools.wraps(function)
    def either(*arguments: Any, **settings: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*arguments, **settings)
        if not disabled:
            reason = (
                "a stage sets hooks on saved tensors, and reads values, neither of which compiles"
            )
            hidden = torch.compiler.disable(function, reason=reason)  # type: ignore[no-untyped-call]
            disabled.append(hidden)
        return disabled[0](*arguments, **settings)

    return cast(AnyFunction, either)


# What the forward pass leaves behind -------------------------------------------------------------


class Handle:
    """Stands in the graph for a tensor that was not kept."""

    __slots__ = ("__weakref__", "group", "index", "kind", "tape", "tensor", "version")

    def __init__(self, tape: Tape, group: Group, index: int, tensor: Tensor) -> None:
        self.tape, self.group, self.index = tape, group, index
        self.kind = _kind(tensor)
        self.tensor: Tensor | None = None
        self.version = 0


Kind = tuple[torch.Size, torch.dtype, torch.device, tuple[int, ...]]


def _kind(tensor: Tensor) -> Kind:
    """Shape, dtype, device and strides."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def _same_kind(one: Kind, other: Kind) -> bool:
    """Whether two tensors are alike; dimensions of size 1, and of tensors without elements, have
    no stride to speak of."""
    return one == other or (
        one[:3] == other[:3]
        and all(
            s == t or n == 1 or 0 in one[0]
            for s, t, n in zip(one[3], other[3], one[0], strict=True)
        )
    )


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


class Kept:
    """A saved tensor that is a parameter, buffer or draw: kept itself, with its version."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, _version(tensor)


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

    def end(self) -> None:
        """End the forward pass of a call: let go of the tensors that it would have saved."""
        self.is_running = False
        for reference in self.handles:
            handle = reference()
            if handle is not None:
                handle.tensor = None


class ModuleState:
    """The parameters, buffers and modes that a function had in the forward pass."""

    __slots__ = ("buffers", "constant", "counted", "needs_grad", "parameters", "training")

    def __init__(self, function: nn.Module) -> None:
        self.parameters, self.buffers, self.training = _contents(function)
        self.needs_grad = [p.requires_grad for p in self.parameters]
        self.counted = _statistics(function) if self.buffers else set()
        given = (*self.parameters, *self.buffers, *_shards(function))
        self.constant = [Kept(t) for t in given if id(t) not in self.counted]
        """Everything but what batch normalisation counts."""

    def has_changed(self) -> bool:
        """Whether anything was changed in place that must not be."""
        return any(_version(kept.tensor) != kept.version for kept in self.constant)

    def uncounted(self) -> list[Tensor]:
        """The buffers for a replay: copies of those in which batch normalisation counts."""
        return [b.clone() if id(b) in self.counted else b for b in self.buffers]


def _contents(function: nn.Module) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    modules = list(_modules(function, {}).values())
    parameters: list[Tensor] = [p for m in modules for p in _fixed(m).values() if p is not None]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    return parameters, buffers, [m.training for m in modules]


def _modules(function: nn.Module, found: dict[int, nn.Module]) -> dict[int, nn.Module]:
    """What `function.modules()` gives, in its order and faster."""
    if id(function) not in found:
        found[id(function)] = function
        for child in function._modules.values():
            if child is not None:
                _modules(child, found)
    return found


def _fixed(module: nn.Module) -> Mapping[str, Tensor | None]:
    """A module's parameters that stay the same tensors. FSDP puts whole ones in the place of its
    shards around every call, a replay's too: those cannot be substituted, and need not be."""
    return {} if _is_sharded(module) else module._parameters


def _buffers(module: nn.Module) -> Mapping[str, Tensor | None]:
    return module._buffers


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages a module's parameters."""
    return "_is_fsdp_managed_module" in module.__dict__


def _shards(function: nn.Module) -> list[Tensor]:
    """What an optimizer changes in place of the parameters that FSDP manages."""
    modules = [m for m in _modules(function, {}).values() if _is_sharded(m)]
    return [p for m in modules for p in m._parameters.values() if p is not None]


def _statistics(function: nn.Module) -> set[int]:
    """The ids of the buffers that batch normalisation updates in its forward pass, and does not
    read there."""
    return {
        id(buffer)
        for module in function.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module._buffers.values()
    }


class RandomState:
    """The states of the random generators, of the CPU and of a device."""

    __slots__ = ("device", "states")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = {"cpu": torch.get_rng_state()}
        if device.type not in ("cpu", "meta"):
            self.states[device.type] = torch.get_device_module(device).get_rng_state(device)

    def has_moved(self) -> bool:
        """Whether anything was drawn since."""
        return self.drawn() is not None

    def drawn(self) -> Drawn | None:
        """What was drawn since, if anything."""
        now = RandomState(self.device).states
        moved = [kind for kind in now if _raw(self.states[kind]) != _raw(now[kind])]
        before, after = ({kind: states[kind] for kind in moved} for states in (self.states, now))
        return Drawn(self.device, before, after) if moved else None


@dataclass(frozen=True)
class Drawn:
    """The generators that a call drew from: their states before it and after it."""

    device: torch.device
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let the same numbers be drawn once more; then the generators stand where they stood."""
        now = RandomState(self.device)
        try:
            self._restore(self.before)
            yield
            then = RandomState(self.device).states
            for kind, after in self.after.items():
                # One that did not move has nothing to do with the call: another thread drew from
                # it during the forward pass.
                if _raw(then[kind]) not in (_raw(after), _raw(self.before[kind])):
                    raise ReplayError(_OTHER_DRAWS)
        finally:
            self._restore({kind: now.states[kind] for kind in self.before})

    def _restore(self, states: Mapping[str, Tensor]) -> None:
        for kind, state in states.items():
            if kind == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(self.device).set_rng_state(state, self.device)


_OTHER_DRAWS = (
    "a residual function drew other random numbers in the replay than in the forward pass. If "
    "another thread draws from the same generator, nothing can be drawn again: use a process for "
    "each, or backward: store"
)


def _raw(state: Tensor) -> bytes:
    """The bytes of a generator's state, read past any dispatch mode (fake tensors, say)."""
    return ctypes.string_at(state.data_ptr(), state.numel())


class AutocastState:
    """The autocast settings for the CPU and for a device."""

    def __init__(self, device: torch.device) -> None:
        kinds = dict.fromkeys(("cpu", device.type))  # both, where they differ
        self.settings = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        ]
        self.cache = torch.is_autocast_cache_enabled()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run with these settings."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self.settings:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cache)
                    )
            yield


_replaying = threading.local()


def is_replaying() -> bool:
    """True inside a residual function that runs a second time, for the backward pass."""
    return getattr(_replaying, "now", False)


_calls = threading.local()


@contextmanager
def _inside_a_call() -> Iterator[None]:
    """Marks that a residual function runs, so that a stage inside it is noticed."""
    outer = getattr(_calls, "running", False)
    try:
        _calls.running = True
        yield
    finally:
        _calls.running = outer


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
            handle.tensor, handle.version = tensor.detach(), _version(tensor)
        return handle

    def arithmetic(self, step: Step) -> None:
        """Begin a step."""
        self.group, self.kept = self.tape.open_step()

    def call(
        self, step: Step, index: int, function: nn.Module, arguments: Sequence[Tensor]
    ) -> Tensor:
        """Run a call in a group of its own."""
        outer = self.group, self.kept
        with _swapping:
            module = ModuleState(function)
        needs = tuple(argument.requires_grad for argument in arguments)
        self.group = self.tape.open_call(index, needs, module)
        self.kept = {id(tensor) for tensor in (*module.parameters, *module.buffers)}
        random = RandomState(arguments[0].device)
        versions = [_version(argument) for argument in arguments]
        with _swapping if module.counted else nullcontext(), _inside_a_call():
            result = invoke(function, arguments, self.dtype)
        self.group.end()
        if [_version(argument) for argument in arguments] != versions:
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
        self.group.result_needs_grad = result.requires_grad
        self.group, self.kept = outer
        return result


def _name(step: Step, index: int) -> str:
    return "" if isinstance(step, Permute) else step.calls[index].function


@uncompiled
def unpack(packed: Handle | Kept) -> Tensor:
    """Give autograd a saved tensor: kept, or rebuilt by the tape."""
    if isinstance(packed, Kept):
        if _version(packed.tensor) != packed.version:
            raise ReplayError(_CHANGED)
        return packed.tensor
    return packed.tape.fetch(packed)


_CHANGED = (
    "a parameter, buffer or input of a stage was changed in place between the forward and the "
    "backward pass, which computes activations again from it; step the optimizer after backward"
)


# Tapes -------------------------------------------------------------------------------------------


class Tape:
    """The record of one forward pass over some layers, from which saved tensors are rebuilt."""

    def __init__(
        self,
        layers: Sequence[Layer],
        draws: Sequence[Values],
        values: Values,
        information: Information,
        first: int = 0,
    ) -> None:
        """`first` is the number of the first layer; what exact updates lose goes into
        `information`."""
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
        """Results of replayed calls, until their step is done with."""

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

    # Replaying

    def fetch(self, handle: Handle) -> Tensor:
        """The tensor behind a handle. Replays the handle's group where it has not been."""
        if handle.tensor is None:
            with torch.no_grad():
                self.materialise(handle)
        tensor = handle.tensor
        assert tensor is not None
        if not handle.group.is_running:
            handle.tensor = None
        if not _same_kind(_kind(tensor), handle.kind):
            raise ReplayError(_OTHER_REPLAY)
        if _version(tensor) != handle.version:
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

    def layer_of(self, step: int) -> Layer:
        """The layer that a step belongs to."""
        return self.layers[self.steps[step][0]]

    def scope(self, step: int) -> Values:
        """What a step reads: streams, temporaries, draws, coefficients, results so far."""
        assert self.values is not None
        layer_index, _, update = self.steps[step]
        assert not isinstance(update, Permute)
        scope = {**self.values, **self.draws[layer_index]}
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
        """Run one call again, and fill the handles of its group."""
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
        with self.capture(group) as kept, _replay(function, group, kept) as replay:
            result = invoke(replay, arguments, self.dtype)
        self.results[step, index] = result.detach()

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
            for name, value in _values(self.values).items()
        }
        values.update(self.draws[layer_index])
        layer = self.layers[layer_index]
        self.check_given(layer_index, update)
        leaves, flags = tuple(layer.leaves.values()), self.leaves_need_grad[layer_index]
        with _needing_grad(leaves, flags), self.capture(group) as kept:
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
        result: Tensor = _Substituted(_Method(map, way), tensors)(value)
        return result

    @contextmanager
    def capture(self, group: Group) -> Iterator[set[int]]:
        """Fill a group's handles with what is saved inside; yields the ids of tensors kept."""
        kept: set[int] = set()
        saved: list[tuple[Tensor, int]] = []

        def pack(tensor: Tensor) -> Tensor:
            if id(tensor) in kept:
                return tensor
            # Detached: the replayed graph holds this function, and must not hold itself.
            saved.append((tensor.detach(), _version(tensor)))
            return saved[-1][0]

        def give(tensor: Tensor) -> Tensor:
            return tensor

        with torch.enable_grad(), self.autocast.entered(), saved_tensors_hooks(pack, give):
            yield kept
        if len(saved) != len(group.handles):
            raise ReplayError(_OTHER_REPLAY)
        for reference, (tensor, version) in zip(group.handles, saved, strict=True):
            handle = reference()
            if handle is not None:
                handle.tensor, handle.version = tensor, version


_OTHER_REPLAY = (
    "a residual function did not do the same in the replay as in the forward pass: it saved other "
    "tensors. It must not depend on anything but its arguments, parameters, buffers and the random "
    "generators; a context such as sdpa_kernel has to cover the backward pass too"
)


_PAST = (
    "a reversible stage was asked for an activation a second time, after its final streams were "
    "freed: give backward(retain_graph=True), or, in an autograd.Function inside a residual "
    "function, read ctx.saved_tensors once"
)


def _values(values: Values | None) -> Values:
    assert values is not None
    return values


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
            way = partial(_exact_map(map).advance, grid=step.grid, kept=information)
            return self.tape.through(self.step, map, way, value)

        return self.tape.exactly_again(value, advance)


@contextmanager
def _replay(function: nn.Module, group: Group, kept: set[int]) -> Iterator[nn.Module]:
    """The function as it was in the forward pass: parameters, buffers, modes, random numbers."""
    module = group.module
    assert module is not None
    with _swapping:
        parameters, buffers, training = _contents(function)
    if module.has_changed():
        raise ReplayError(_CHANGED)
    tensors = [*module.parameters, *module.uncounted()]
    kept.update(id(tensor) for tensor in tensors)
    same = [*map(id, (*parameters, *buffers))] == [*map(id, tensors)]
    with ExitStack() as stack:
        stack.enter_context(_needing_grad(module.parameters, module.needs_grad))
        if training != module.training:
            stack.callback(_set_training, function, training)
            _set_training(function, module.training)
        if group.drawn is not None:
            stack.enter_context(group.drawn.again())
        stack.enter_context(_marked_as_replay())
        yield function if same else _Substituted(function, tensors)


@contextmanager
def _needing_grad(leaves: Sequence[Tensor], flags: Sequence[bool]) -> Iterator[None]:
    """Let parameters require gradients as they did in the forward pass: one that was frozen, or
    thawed, since must not change what a replay saves."""
    changed = [
        (leaf, flag) for leaf, flag in zip(leaves, flags, strict=True) if leaf.requires_grad != flag
    ]
    try:
        for leaf, flag in changed:
            leaf.requires_grad_(flag)
        yield
    finally:
        for leaf, flag in changed:
            leaf.requires_grad_(not flag)


@contextmanager
def _marked_as_replay() -> Iterator[None]:
    outer = is_replaying()
    try:
        _replaying.now = True
        yield
    finally:
        _replaying.now = outer


def _set_training(function: nn.Module, modes: Sequence[bool]) -> None:
    for module, mode in zip(function.modules(), modes, strict=True):
        module.training = mode


class _Substituted(nn.Module):
    """A function with other parameters and buffers, for one call."""

    def __init__(self, function: nn.Module, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        modules = list(function.named_modules())
        names = [
            f"{prefix}{'.' if prefix else ''}{name}"
            for contents in (_fixed, _buffers)
            for prefix, module in modules
            for name, tensor in contents(module).items()
            if tensor is not None
        ]
        self.function = [function]  # in a list, so that it does not become a submodule
        self.tensors = dict(zip(names, tensors, strict=True))

    def forward(self, *arguments: Tensor) -> Tensor:
        """Call the function with the tensors in place of its own. Those of every module are among
        them, so that there is nothing to tie."""
        with _swapping:
            result: Tensor = torch.func.functional_call(
                self.function[0], self.tensors, arguments, tie_weights=False
            )
        return result


_swapping = threading.RLock()
"""Held while a function has other tensors than its own, which another thread must not take for
its own, and while batch normalisation counts in them."""


class _Method(nn.Module):
    """A method of a map as a module with the same parameters."""

    def __init__(self, map: nn.Module, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map, self.way = map, way

    def forward(self, value: Tensor) -> Tensor:
        """What the method gives."""
        return self.way(value)


class ReversibleTape(Tape):
    """Rebuilds streams by undoing steps, from the final streams backwards."""

    def __init__(
        self,
        layers: Sequence[Layer],
        draws: Sequence[Values],
        values: Values,
        information: Information,
        first: int = 0,
    ) -> None:
        super().__init__(layers, draws, values, information, first)
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
        self.waiting = {(group.step, group.call) for group in groups if group.handles}

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
        elif handle.tensor is None:
            self.undo(again=True)
        if not self.waiting:  # nothing is left to replay: let the streams go
            self.values = self.kept = None
            self.results.clear()

    def exactly_again(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """Anything: the new value is known, and only what is saved on the way is wanted."""
        return value

    @contextmanager
    def capture(self, group: Group) -> Iterator[set[int]]:
        """As for any tape; what is captured is waited for no longer."""
        with super().capture(group) as kept:
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
        values = _values(self.values)
        if isinstance(step, Permute):
            values.update(zip(step.sources, [values[t] for t in step.targets], strict=True))
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
            raise ReplayError(_OTHER_REPLAY)

    def unmapped(self, index: int, step: Map) -> Tensor:
        """The old value of a map's target, by the parameters of the forward pass."""
        module = self.calls[index][0].module
        assert module is not None
        if module.has_changed():
            raise ReplayError(_CHANGED)
        assert self.kept is not None
        map = self.layer_of(index).functions[step.map]
        way = _inverse_of(step, map, self.kept)
        return self.through(index, map, way, _values(self.values)[step.target])

    def provide_temporaries(self, step: int) -> None:
        """Compute again the temporaries that a step reads."""
        _, step_index, update = self.steps[step]
        assert isinstance(update, Update)
        start = step - step_index
        for name in update.temporaries:
            self.provide_temporary(start + _definition(self.layer_of(start), name)[0])

    def provide_temporary(self, step: int) -> None:
        """Compute again the temporary that a step defines, its groups captured."""
        definition, values = self.steps[step][2], _values(self.values)
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


@atexit.register
def _drain() -> None:
    """Run an empty backward pass, which drops what a failed one left in autograd's queue: handles
    that outlive the interpreter would crash it (seen on PyTorch 2.15)."""
    with suppress(RuntimeError):  # in a forked process, say
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


# Strategies --------------------------------------------------------------------------------------


def is_transformed() -> bool:
    """Whether torch.func, or forward-mode differentiation, is at work: neither lets saved tensors
    be replaced, so that a stage has to store them."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_refused(values: Values) -> None:
    """Raises RuntimeError where a stage cannot compute its activations again."""
    if getattr(_calls, "running", False):
        raise ReplayError(
            "a stage runs inside a residual function of another stage, and would be rebuilt inside "
            "a replay: let stages follow one another, or set_backward('store') for the inner one"
        )
    device = next(iter(values.values())).device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ReplayError(
            "a CUDA graph cannot hold a stage that computes activations again: replays set the "
            "random generators, which a capture forbids; set_backward('store') for it"
        )


@uncompiled
def run_reversible(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    every: int | None = None,
) -> Values:
    """Run layers; backward rebuilds activations from the final streams, and, of exact updates, from
    what they lose, which goes into `information`. The streams after `every` so many layers are
    kept, and rebuilt from."""
    check_refused(values)
    kept = information or Information()
    every = every or len(layers)
    for first in range(0, len(layers), every):
        part = slice(first, first + every)
        values = _run_reversible(layers[part], values, draws[part], kept, first)
    return values


def _run_reversible(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information,
    first: int,
) -> Values:
    tape = ReversibleTape(layers, draws, values, information, first)
    tape.names = tuple(values)
    final = tape.record(values)
    if not any(stream.requires_grad for stream in final.values()):
        return final
    leaving: tuple[Tensor, ...] = _Exit.apply(tape, *final.values())
    return dict(zip(tape.names, leaving, strict=True))
