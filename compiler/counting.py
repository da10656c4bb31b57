"""Parameters, multiply-accumulates and kept bytes of a network, none of it allocated."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from archspec.layers import UserModule
from archspec.shapes import Shape, elements
from compiler.exact import Monotone, Remainder
from compiler.forms import choices
from compiler.information import SPILL, WORD
from compiler.memory import LiveBytes
from compiler.network import Network
from compiler.plan import Affine, LayerPlan, Mapped, NetworkPlan, StagePlan
from compiler.stage import Stage

NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
NORM_COST = 5
"""Operations for one element of a norm, as published counts of Rev-ViT have it."""


@dataclass(frozen=True)
class Cost:
    """Of one input, forward. `macs` are multiply-accumulates of matrix products, convolutions and
    attention; `norms` the operations of norms, which some publications add to them."""

    macs: int | None
    """None where a module of the user's own cannot be counted on the meta device."""
    norms: int | None


def parameters(module: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


UNKNOWN = Cost(None, None)


def costs(plan: NetworkPlan) -> dict[str, Cost]:
    """The cost of `stem`, of each stage by name, and of `head`, counted on the meta device."""
    try:
        with torch.device("meta"):
            network = Network(plan).eval()
    except Exception:
        if not has_user_modules(plan):
            raise
        stages = (f"stages.{stage.name}" for stage in plan.stages)
        return dict.fromkeys(("stem", *stages, "head"), UNKNOWN)
    value = torch.empty(1, *plan.input.sizes, device="meta")
    side = {s.name: torch.empty(1, *s.shape.sizes, device="meta") for s in plan.side}
    found: dict[str, Cost] = {}

    def counted(name: str, part: nn.Module, after: Shape, run: Callable[[], Tensor]) -> Tensor:
        # FlopCounterMode counts a multiply and an add as two.
        try:
            with _norm_elements(part) as norms, FlopCounterMode(display=False) as flops:
                result = run()
        except Exception:
            if not has_user_modules(plan):
                raise
            found[name] = UNKNOWN
            return torch.empty(1, *after.sizes, device="meta")
        found[name] = Cost(flops.get_total_flops() // 2, NORM_COST * sum(norms))
        return result

    with torch.no_grad():
        after = plan.stem[-1].after if plan.stem else plan.input
        value = counted("stem", network.stem, after, lambda: network.stem(value))
        for stage in network.stages:
            read = {name: side[name] for name in stage.facts.side}
            run = partial(_through, stage, value, read)
            value = counted(f"stages.{stage.plan.name}", stage, stage.plan.result, run)
        counted("head", network.head, plan.output, lambda: network.head(value))
    return found


def has_user_modules(plan: NetworkPlan) -> bool:
    """Whether a network has modules of the user's own, which may do what no counting can follow
    (ask a tensor that is not there for its values, say)."""
    lists: list[tuple[LayerPlan, ...]] = [plan.stem, plan.head]
    for stage in plan.stages:
        lists += [stage.transition, *(f.layers for f in (*stage.start_functions, *stage.functions))]
    return any(map(_is_users, (layer for layers in lists for layer in layers)))


def _is_users(layer: LayerPlan) -> bool:
    inside = any(_is_users(inner) for branch in layer.branches for inner in branch)
    return inside or isinstance(layer.layer, UserModule)


def _through(stage: Stage, value: Tensor, side: dict[str, Tensor]) -> Tensor:
    return stage.merge(*stage(*stage.split(value), **side))


@contextmanager
def _norm_elements(module: nn.Module) -> Iterator[list[int]]:
    """Collects the number of elements that each norm in `module` sees."""
    seen: list[int] = []

    def note(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].numel())

    hooks = [m.register_forward_pre_hook(note) for m in module.modules() if isinstance(m, NORMS)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def kept_bytes_per_input(plan: NetworkPlan, backward: str | None = None) -> int | None:
    """Bytes of activations kept for each input of a batch: the slope over the batch size. None
    where a module of the user's own cannot be counted on fake tensors."""
    try:
        return (kept_bytes(plan, backward, 4) - kept_bytes(plan, backward, 2)) // 2
    except Exception:
        if not has_user_modules(plan):
            raise
        return None


def kept_bytes(plan: NetworkPlan, backward: str | None = None, batch: int = 1) -> int:
    """Bytes of activations alive between a training step's forward and backward, in float32:
    counted on fake CPU tensors. `backward` overrides the spec's strategies."""
    with torch.device("meta"):
        network = Network(plan).train()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        network.to_empty(device="cpu")
        if backward is not None:
            network.set_backward(backward)
        for stage in network.stages:
            if stage.backward == "reversible" and stage.facts.invertible_from > 0:
                stage.backward = "checkpoint"  # as it begins, which takes more
        value = torch.empty(batch, *plan.input.sizes)
        side = {s.name: torch.empty(batch, *s.shape.sizes) for s in plan.side}
        with LiveBytes() as live:
            live.ignore([*network.parameters(), *network.buffers(), value, *side.values()])
            output = network(value, **side)
            kept: int = live.now
        del output
    reversed = [s.plan for s in network.stages if s.backward == "reversible"]
    return kept + batch * sum(map(_spilled_bytes, reversed))


def _spilled_bytes(plan: StagePlan) -> int:
    """Bytes that leave the words of a stage's side information, for one input: of values that are
    not there, which a fake tensor's are not, only the expected number is known."""
    shapes = {stream.name: stream.shape for stream in plan.streams}
    bits: dict[Shape, float] = defaultdict(float)
    for layer in choices(plan):
        for step, choice in zip(plan.steps, layer, strict=True):
            if choice is not None and isinstance(choice.form, (Remainder, Monotone)):
                assert isinstance(step, (Affine, Mapped))
                bits[shapes[step.target]] += choice.bits
    # A word is full at WORD bits, and the fullest is ahead of the others.
    spills = {shape: math.ceil(max(0.0, b - WORD + SPILL / 2) / SPILL) for shape, b in bits.items()}
    return sum(elements(shape) * count * SPILL // 8 for shape, count in spills.items())
