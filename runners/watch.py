"""A run watches its inverses: what they give back, and gradients beside those of `store`.

Both are relative errors, stage by stage, on a few validation samples, under the run's autocast. A
stage is looked at in training, where its streams are reconstructed, with dropout and batch
statistics off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archspec.training import Watch
from compiler.drift import given_by, measured_errors, modes_kept
from compiler.network import Network
from compiler.remedies import recommendation
from compiler.stage import Stage
from compiler.verify import gradient_distance
from runners.data import Split
from runners.drift_log import FAILURES, drifting, few_samples
from runners.parts import Parts
from runners.randomness import derived_seed
from runners.records import Records
from runners.tasks import Batch, Task

LOG = logging.getLogger("archspec")
ROUNDTRIP, GRADIENT = "roundtrip error", "gradient error"


@dataclass(frozen=True)
class DriftWatch:
    """What is looked at, how often, and whom it is told."""

    recipe: Watch
    parts: Parts
    task: Task
    split: Split
    records: Records
    warned: set[str] = field(default_factory=set)
    """Stages: a person is told once of each."""

    def after(self, step: int) -> None:
        """Look, where it is time after a step, counted from 1 over the whole run. Weights, buffers,
        modes, gradients and the global generators stay as they are."""
        looks: dict[str, Callable[[Parts, Task, Batch], Mapping[str, float]]] = {}
        if step % self.recipe.roundtrip == 0:
            looks[ROUNDTRIP] = roundtrip_errors
        if step % self.recipe.gradient == 0:
            looks[GRADIENT] = gradient_errors
        for kind, errors in looks.items():
            found = self._found(errors)
            self.records.step(step, {f"{kind}/{name}": error for name, error in found.items()})
            for name, error in found.items():
                self._warn(name, kind, error, step)

    def _found(
        self, errors: Callable[[Parts, Task, Batch], Mapping[str, float]]
    ) -> Mapping[str, float]:
        try:
            with few_samples(self.parts, self.split) as batch:
                return errors(self.parts, self.task, batch)
        except FAILURES:
            return {}

    def _warn(self, name: str, kind: str, error: float, step: int) -> None:
        if error <= self.recipe.warn or name in self.warned:  # not a number is past it too
            return
        self.warned.add(name)
        LOG.warning(
            "step %d: the %s of stage `%s` is %.1e: %s. %s keeps it small",
            step,
            kind,
            name,
            error,
            "its gradients are not those of its outputs",
            cure(self.parts.model, name),
        )


def cure(network: torch.nn.Module, name: str) -> str:
    """What to write in a stage instead."""
    assert isinstance(network, Network)
    (plan,) = (stage.plan for stage in network.stages if stage.plan.name == name)
    every = max(1, min(plan.store_every, plan.depth) // 2)
    return recommendation(plan) or f"`arithmetic: exact` or `store_every: {every}`"


def roundtrip_errors(parts: Parts, task: Task, batch: Batch) -> dict[str, float]:
    """Of all streams of each stage together, after the stage is undone."""
    network = parts.model
    if not isinstance(network, Network):
        return {}
    with parts.fabric.autocast():
        given = given_by(network, *task.seen(batch))
        return {
            stage.plan.name: measured_errors(stage, given[stage.plan.name])[-1]
            for stage in drifting(network)
            if stage.has_inverse
        }


def gradient_errors(parts: Parts, task: Task, batch: Batch) -> dict[str, float]:
    """The worst of each stage's parameters, the loss being that of a few samples."""
    network = parts.model
    if not isinstance(network, Network):
        return {}
    stages = [stage for stage in drifting(network) if stage.has_inverse]
    weights = {s.plan.name: [p for p in s.parameters() if p.requires_grad] for s in stages}
    wanted = [p for found in weights.values() for p in found]
    if not wanted:
        return {}
    found = iter(_gradients(parts, task, batch, wanted))
    with _stored(stages):
        expected = iter(_gradients(parts, task, batch, wanted))
    errors = {}
    for name, mine in weights.items():
        pairs = [(next(found), next(expected)) for _ in mine]
        errors[name] = gradient_distance(*zip(*pairs, strict=True)) if pairs else 0.0
    return errors


@contextmanager
def _stored(stages: list[Stage]) -> Iterator[None]:
    """Stages with stored activations."""
    before = [stage.backward for stage in stages]
    try:
        for stage in stages:
            stage.backward = "store"
        yield
    finally:
        for stage, strategy in zip(stages, before, strict=True):
            stage.backward = strategy


def _gradients(
    parts: Parts, task: Task, batch: Batch, wanted: list[torch.nn.Parameter]
) -> list[Tensor]:
    network = parts.model
    assert isinstance(network, Network)
    torch.manual_seed(derived_seed(0, "watch"))  # the same draws for both
    with modes_kept(network), parts.fabric.autocast():
        network.eval()
        for stage in network.stages:
            stage.training = True
        loss = task.in_training(network, batch).loss
    # DDP and the optimizer see nothing of it: no gradient is accumulated.
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
