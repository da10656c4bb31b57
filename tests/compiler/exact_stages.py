"""Stages of exact arithmetic, and what each of them has to do bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from small_networks import network
from torch import Tensor, nn

from compiler import engine
from compiler.exact import Form, Grid
from compiler.information import Information
from compiler.stage import Stage

Given = dict[str, Any]
SMALL: dict[str, Any] = {"input": {"tokens": [3, 4]}}
TINY: dict[str, Any] = {"input": {"features": [2]}}


def exact_stage(
    stage: Mapping[str, Any], dtype: torch.dtype = torch.float32, **settings: Any
) -> Stage:
    """A stage in exact arithmetic, by default on 3 tokens of 4 channels."""
    written = {"arithmetic": "exact", **stage}
    found: Stage = network(written, dtype, **{**SMALL, **settings}).stages[0]
    return found


def in_floats(stage: Stage) -> Stage:
    """The same stage with the same weights, in float64 and ordinary arithmetic."""
    plan = replace(stage.plan, fraction_bits=None)
    found = Stage(plan, {"classes": 3}).double()
    found.load_state_dict(stage.state_dict())
    return found.train(stage.training)


def forms(stage: Stage) -> set[str]:
    """The names of the forms that its updates take."""
    chosen: list[Form] = [c.form for layer in stage.layers for c in layer.chosen if c is not None]  # type: ignore[union-attr]
    return {type(form).__name__ for form in chosen}


def grid_of(stage: Stage) -> Grid:
    assert stage.plan.fraction_bits is not None
    return Grid(stage.plan.fraction_bits)


def streams_on_grid(stage: Stage, batch: int = 3, seed: int = 1) -> tuple[Tensor, ...]:
    """Random streams, all different."""
    random, grid = torch.Generator().manual_seed(seed), grid_of(stage)
    dtype = next((p.dtype for p in stage.parameters()), torch.float32)
    sizes = stage.facts.streams.values()
    values = (torch.randn(batch, *s, generator=random, dtype=torch.float64) for s in sizes)
    return tuple(grid.rounded(value).to(dtype) for value in values)


# Every layer -------------------------------------------------------------------------------------


class Probe(nn.Module):
    """An invertible map that changes nothing, and takes down what passes it."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: Tensor | None = None
        self.back: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        if self.ahead is None:
            self.ahead = value.detach().clone()
        return value

    def inverse(self, value: Tensor) -> Tensor:
        self.back = value.detach().clone()
        return value


Probes = list[dict[str, Probe]]


def probe(stage: Stage) -> Probes:
    """Put a probe on every stream before every layer of a stage."""
    program: Callable[[], list[engine.Layer]] = type(stage).program.__get__(stage)
    probes: Probes = [{name: Probe() for name in stage.facts.streams} for _ in stage.layers]

    def probed() -> list[engine.Layer]:
        found = []
        for layer, of_layer in zip(program(), probes, strict=True):
            named = {f"Probe_{name}": p for name, p in of_layer.items()}
            maps = tuple(engine.Map(name, f"Probe_{name}") for name in of_layer)
            functions = {**layer.functions, **named}
            found.append(replace(layer, steps=(*maps, *layer.steps), functions=functions))
        return found

    stage.program = probed  # type: ignore[method-assign]
    return probes


def unprobe(stage: Stage) -> None:
    """Take them off."""
    del stage.program


def assert_reconstructed(probes: Probes, first: int = 0) -> None:
    """The streams before every layer from the first one were as in the forward pass."""
    for layer, of_layer in reversed(list(enumerate(probes))[first:]):
        for name, found in of_layer.items():
            assert found.ahead is not None
            assert found.back is not None, f"{name} was not reconstructed before layer {layer}"
            assert torch.equal(found.ahead, found.back), f"{name} differs before layer {layer}"


# Passes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass gave."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor | None]
    buffers: tuple[Tensor, ...]


Context = Callable[[], AbstractContextManager[Any]]


def bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def one_pass(
    stage: Stage,
    streams: Sequence[Tensor],
    given: Mapping[str, Any] | None = None,
    strategy: str = "reversible",
    context: Context = nullcontext,
) -> Pass:
    """A forward pass and the gradients of a random projection of what it gives, to streams, side
    inputs and parameters. Statistics of batch normalisation are put back."""
    stage.backward = strategy
    side = {n: v for n, v in (given or {}).items() if isinstance(v, Tensor)}
    leaves = {f"stream {i}": s.clone().requires_grad_() for i, s in enumerate(streams)}
    entering = list(leaves.values())
    sides = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in side.items()}
    wanted = {
        **leaves,
        **{f"side {n}": v for n, v in sides.items() if v.requires_grad},
        **{n: p for n, p in stage.named_parameters() if p.requires_grad},
    }
    buffers = [b.clone() for b in stage.buffers()]
    torch.manual_seed(5)
    with context():
        outputs = stage(*entering, **{**(given or {}), **sides})
    random = torch.Generator().manual_seed(6)
    weights = [torch.randn(out.shape, generator=random).to(out.dtype) for out in outputs]
    differentiable = [i for i, out in enumerate(outputs) if out.requires_grad]
    found = torch.autograd.grad(
        [outputs[i] for i in differentiable],
        list(wanted.values()),
        [weights[i] for i in differentiable],
        allow_unused=True,
    )
    after = tuple(b.clone() for b in stage.buffers())
    with torch.no_grad():
        for buffer, old in zip(stage.buffers(), buffers, strict=True):
            buffer.copy_(old)
    detached = tuple(out.detach() for out in outputs)
    return Pass(detached, dict(zip(wanted, found, strict=True)), after)


def same(found: Tensor | None, wanted: Tensor | None) -> bool:
    """Bit for bit; no gradient may be one of zeros."""
    if found is None or wanted is None:
        return all(t is None or not t.any() for t in (found, wanted))
    return torch.equal(found, wanted)


def assert_same_pass(found: Pass, wanted: Pass) -> None:
    """Bit for bit."""
    for i, (a, b) in enumerate(zip(found.outputs, wanted.outputs, strict=True)):
        assert torch.equal(a, b), f"output {i} differs"
    differing = [n for n, g in wanted.gradients.items() if not same(found.gradients[n], g)]
    assert not differing, f"gradients differ: {differing}"
    assert all(torch.equal(a, b) for a, b in zip(found.buffers, wanted.buffers, strict=True))
    assert all(g is None or g.isfinite().all() for g in wanted.gradients.values())


def assert_exact(
    stage: Stage,
    streams: Sequence[Tensor] | None = None,
    given: Given | None = None,
    *,
    context: Context = nullcontext,
    strategies: Sequence[str] = ("checkpoint",),
    inverse: bool = True,
    every_layer: bool = True,
) -> Pass:
    """Every strategy gives the same outputs and the same gradients; without gradients the outputs
    are the same too; in the backward pass, and by `inverse` (unless functions are random), the
    streams before every layer are those of the forward pass."""
    streams = streams_on_grid(stage) if streams is None else streams
    given = {"draws": stage.draw(streams[0])} if given is None else given
    stored = one_pass(stage, streams, given, "store", context)
    for strategy in strategies:
        assert_same_pass(one_pass(stage, streams, given, strategy, context), stored)
    probes = probe(stage)
    assert_same_pass(one_pass(stage, streams, given, "reversible", context), stored)
    if every_layer:
        assert_reconstructed(probes, first=1)  # what precedes the first one nobody asks for
    unprobe(stage)
    with torch.no_grad(), context():
        torch.manual_seed(5)
        buffers = [b.clone() for b in stage.buffers()]
        for a, b in zip(stage(*streams, **given), stored.outputs, strict=True):
            assert torch.equal(a, b)
        for buffer, old in zip(stage.buffers(), buffers, strict=True):
            buffer.copy_(old)
        if inverse:
            assert_inverse(stage, streams, given)
    return stored


def assert_inverse(stage: Stage, streams: Sequence[Tensor], given: Given) -> Information:
    """`inverse` gives back the streams at every layer, twice: it leaves the information as it
    is."""
    probes, information = probe(stage), Information()
    outputs = stage(*streams, **given, information=information)
    for _ in range(2):
        back = stage.inverse(*outputs, **given, information=information)
        for a, b in zip(back, streams, strict=True):
            assert torch.equal(a, b)
        assert_reconstructed(probes)
    unprobe(stage)
    return information
