"""Passes through checkpointed stages, by schedule, and what is the same."""

from __future__ import annotations

from typing import Any

import torch
from small_networks import Outcome, assert_same_outputs, outcome
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
