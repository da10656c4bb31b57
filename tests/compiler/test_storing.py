"""Stages whose last calls store their activations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from checkpoint_passes import (
    DROPPING,
    RANDOM,
    assert_keeping_changes_nothing,
    assert_same,
    calls_of,
    stored,
)
from emitted_file import as_module, emitted_text, network_of
from exact_stages import SMALL
from hypothesis import given
from hypothesis import strategies as st
from random_programs import programs
from small_networks import BRANCH, additive, network, outcome, streams_for
from small_networks import spec as small_spec

import archspec
from archspec.diagnostics import SpecError
from archspec.loading import load
from archspec.spec import CheckpointBackward
from compiler.memory import step_memory
from compiler.storing import cut

PAIR = {"depth": 4, "coupling": "momentum_pair", "functions": {"F": DROPPING, "G": BRANCH}}


@RANDOM
@given(programs(), st.integers(0, 40), st.sampled_from(["reversible", "checkpoint"]))
def test_gradients_of_random_programs(program: dict[str, Any], count: int, strategy: str) -> None:
    """However many calls are stored, temporaries, permutations and maps between them."""
    assert_keeping_changes_nothing(program, strategy, stored=count)


@pytest.mark.parametrize("schedule", [{}, {"every": 2}, {"slots": 2}], ids=str)
@pytest.mark.parametrize("count", [1, 3, 8, 50])
def test_beside_checkpoints_gradients_are_the_same_bit_for_bit(
    schedule: dict[str, int], count: int
) -> None:
    stage = network(PAIR).stages[0]
    streams = streams_for(stage, 3)
    wanted = stored(stage, streams)
    stage.set_backward("checkpoint", **schedule, stored=count)
    assert_same(outcome(stage, streams), wanted)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("gamma", ["0.5", "0.9", "{learn: 0.9, within: [0.5, 0.99]}"])
def test_in_exact_arithmetic_gradients_are_the_same_bit_for_bit(count: int, gamma: str) -> None:
    """Of remainders, of which later updates read those of earlier ones, and of learned scales. An
    inverse finds all that was kept."""
    spec = small_spec({**PAIR, "arithmetic": "exact"}, **SMALL)
    stage = archspec.build(load(spec, [f"stages.trunk.constants.gamma={gamma}"])).stages[0]
    streams = tuple(s.float() for s in streams_for(stage, 3))
    wanted = stored(stage, streams)
    stage.set_backward("reversible", stored=count)
    assert_same(outcome(stage, streams), wanted)
    stage.eval()
    information = archspec.Information()
    with torch.enable_grad():
        outputs = stage(*streams, information=information)
    back = stage.inverse(*(out.detach() for out in outputs), information=information)
    whole = archspec.Information()
    stage.set_backward("reversible", stored=0)
    stage(*streams, information=whole)
    assert all(map(torch.equal, back, stage.inverse(*outputs, information=whole)))


@pytest.mark.parametrize(("count", "replays"), [(0, 8), (1, 7), (5, 3), (8, 0), (30, 0)])
def test_stored_calls_are_not_replayed(count: int, replays: int) -> None:
    model = network({**additive(), "depth": 4, "backward": {"reversible": {"stored": count}}})
    counts = [calls_of(model, name) for name in "FG"]
    model(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
    assert sum(of[False] for of in counts) == 8
    assert sum(of[True] for of in counts) == replays


def test_memory_grows_with_what_is_stored() -> None:
    """By as much for each layer, of which the first costs little: what it stores is let go before
    the others are rebuilt. With the last one the final streams need not be kept."""
    model = network({**additive(), "depth": 8}).float()
    value = torch.randn(16, 5, 6)

    def peak(count: int) -> int:
        model.set_backward("reversible", stored=count)
        return step_memory(model, lambda out: out.square().mean(), value).peak

    peaks = [peak(count) for count in range(0, 17, 2)]
    first, *steps, last = (after - before for before, after in pairwise(peaks))
    assert len(set(steps)) == 1
    assert first < steps[0] / 2
    assert last < steps[0]


def test_a_temporary_is_not_parted_from_its_use() -> None:
    """The calls of a Runge-Kutta step are stored together, or not at all."""
    model = network(
        {
            "depth": 3,
            "streams": {"x": "input", "y": "input"},
            "functions": {"F": BRANCH, "G": BRANCH},
            "update": ["k := F(y)", "x += k", "x += G(y)"],
            "output": "x + y",
        }
    )
    layers = model.stages[0].program()
    places = [cut(layers, count) for count in range(1, 8)]
    assert places == [(2, 2), (2, 0), (1, 2), (1, 0), (0, 2), (0, 0), (0, 0)]


def test_settings() -> None:
    model = network({**additive(), "backward": {"checkpoint": {"every": 2, "stored": 3}}})
    stage = model.stages[0]
    assert stage.stored == 3
    assert "backward='checkpoint' (every: 2, stored: 3)" in repr(stage)
    model.set_backward("reversible", stored=2)
    assert "backward='reversible' (stored: 2)" in repr(stage)
    model.set_backward("store")
    assert "stored" not in repr(stage)
    with pytest.raises(ValueError, match="'store' stores all"):
        model.set_backward("store", stored=1)
    with pytest.raises(ValueError, match="whole number from 0 on, found -1"):
        model.set_backward("reversible", stored=-1)
    with pytest.raises(SpecError, match="stored"):
        load(small_spec({**additive(), "backward": {"store": {"stored": 1}}}))
    base = small_spec({**additive(), "backward": {"checkpoint": {"every": 2}}})
    both = load(base, ["stages.trunk.backward.checkpoint.stored=1"])
    assert both.spec.stages["trunk"].backward == CheckpointBackward(every=2, stored=1)
    other = load(both.spec, ["stages.trunk.backward.checkpoint.slots=3"])
    assert other.spec.stages["trunk"].backward == CheckpointBackward(slots=3, stored=1)


def test_an_emitted_file_stores_as_many() -> None:
    spec = small_spec({**PAIR, "backward": {"reversible": {"stored": 3}}}, **SMALL)
    module = as_module(emitted_text(spec))
    other = network_of(module)
    assert other.stages[0].stored == 3
    counts = calls_of(other.train())
    other(torch.randn(2, *other.input)).sum().backward()
    assert sum(counts.values()) == 4 + 3  # of the 3 calls that are stored, one is F's
