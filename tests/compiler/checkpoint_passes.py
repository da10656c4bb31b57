"""Passes through checkpointed stages, by schedule, and what is the same."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, note, settings
from random_programs import PROGRESS, given_to
from small_networks import (
    Outcome,
    assert_same_outputs,
    gradient_error,
    network,
    outcome,
    streams_for,
)
from torch import Tensor, nn

import archspec
from compiler.stage import Stage

Schedule = dict[str, int]
SCHEDULES: tuple[Schedule, ...] = (
    {"every": 2},
    {"every": 3},
    {"every": 50},
    {"slots": 1},
    {"slots": 2},
    {"slots": 3},
    {"slots": 50},
)
RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=100
)
DROPPING: list[Any] = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}, {"drop_path": 0.2}]


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Outputs and gradients, bit for bit."""
    assert_same_outputs(found, wanted)
    assert found.gradients.keys() == wanted.gradients.keys()
    assert [n for n, g in found.gradients.items() if not same(g, wanted.gradients[n])] == []


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def by_schedule(stage: Stage, streams: Any, schedule: Schedule, **keys: Any) -> Outcome:
    stage.set_backward("checkpoint", **schedule)
    return outcome(stage, streams, **keys)


def stored(stage: Stage, streams: Any, **keys: Any) -> Outcome:
    stage.set_backward("store")
    return outcome(stage, streams, **keys)


def calls_of(model: nn.Module, name: str = "F") -> dict[bool, int]:
    """Counts the calls of a function of every layer: forward, and in replays, which may end within
    the function."""
    counts = {False: 0, True: 0}

    def count(module: nn.Module, given: Any) -> None:
        counts[archspec.is_replaying()] += 1

    for path, module in model.named_modules():
        if path.split(".")[-1] == name:
            module.register_forward_pre_hook(count)
    return counts


def assert_keeping_changes_nothing(program: dict[str, Any], strategy: str, **kept: int) -> None:
    """A random program computes the same outputs and gradients as with all activations stored,
    whatever its calls keep."""
    note(str(program))
    head = [] if "features" in program["input"] else [{"pool": "mean"}]
    head = [*head, {"linear": "classes"}]
    model = network(program["stage"], input=program["input"], head=head, side=program["side"])
    model.set_progress(PROGRESS)
    stage: Stage = model.stages[0]
    streams = streams_for(stage, 2)
    given = given_to(stage, 2, streams[0])
    wanted = stored(stage, streams, **given)
    stage.set_backward(strategy, **kept)
    found = outcome(stage, streams, **given)
    assert all(map(same, found.outputs, wanted.outputs))
    assert gradient_error(found, wanted) < 1e-10
