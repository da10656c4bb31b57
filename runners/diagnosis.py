"""Why a step has a loss, or a gradient, that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compiler.drift import given_by, measured_errors
from compiler.network import Network
from runners.drift_log import drifting
from runners.parts import Parts

FEW = 8
"""Samples that an inverse is measured on."""


def diagnosis(parts: Parts, inputs: Tensor, side: Mapping[str, Tensor]) -> str:
    """In words: the weights that are not finite, or else the layer whose activations went first on
    this batch (B, …) with these side inputs; and how far reconstructed streams are from those of
    the forward pass. Leaves weights as they are, for which it must be called before the step is
    taken."""
    try:
        said = _bad_weights(parts.model) or _bad_activations(parts, inputs, side)
        return "; ".join([said, *_drifts(parts, inputs, side)])
    except (RuntimeError, ValueError, ArithmeticError) as error:
        return f"where it began cannot be found: {error}"


def _bad_weights(model: nn.Module) -> str:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return (
                f"the weights `{name}` are not finite, since their gradient was not a step before"
            )
    return ""


def _bad_activations(parts: Parts, inputs: Tensor, side: Mapping[str, Tensor]) -> str:
    if not inputs.isfinite().all():
        return "its inputs are not finite"
    largest = 0.0
    with _first_not_finite(parts.model) as found, torch.no_grad(), parts.fabric.autocast():
        outputs = parts.model(inputs, **side)
        largest = float(outputs.abs().max())
    if found:
        name, size = found[0]
        return f"the activations of `{name}` went first, whose inputs go to {size:.3g}"
    if not math.isfinite(largest):
        return "no function's activations went first, but the streams that they are added to"
    return f"its activations are finite, up to {largest:.3g} at the end: its gradient is not"


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[tuple[str, float]]]:
    """The name of the first module without modules in it whose outputs are not finite where its
    inputs are, and the largest of these. Nothing of what was called before."""
    found: list[tuple[str, float]] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given = [value for value in inputs if isinstance(value, Tensor)]
        if found or not isinstance(output, Tensor) or output.isfinite().all():
            return
        if all(value.isfinite().all() for value in given):
            found.append((names[module], max((float(v.abs().max()) for v in given), default=0.0)))

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _drifts(parts: Parts, inputs: Tensor, side: Mapping[str, Tensor]) -> list[str]:
    """What is left of the streams of each stage that reconstructs them, on some of the batch."""
    if parts.template is not None or not isinstance(parts.model, Network):
        return []
    stages = [stage for stage in drifting(parts.model) if stage.has_inverse]
    if not stages:
        return []
    with parts.fabric.autocast():
        few = {name: value[:FEW] for name, value in side.items()}
        given = given_by(parts.model, inputs[:FEW], few)
        errors = {s.plan.name: measured_errors(s, given[s.plan.name])[-1] for s in stages}
    return [
        f"the inverse of {name} gives streams back {error:.1e} off"
        if math.isfinite(error)
        else f"the inverse of {name} gives no finite streams back"
        for name, error in errors.items()
    ]
