"""Stages whose last calls keep their results: replays end where nothing else is left to compute."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from checkpoint_passes import (
    DROPPING,
    RANDOM,
    assert_keeping_changes_nothing,
    assert_same,
    stored,
)
from emitted_file import as_module, emitted_text, network_of
from exact_stages import SMALL
from hypothesis import given
from hypothesis import strategies as st
from random_programs import programs
from small_networks import BRANCH, additive, gradient_error, network, outcome, streams_for
from small_networks import spec as small_spec
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import archspec
from archspec.loading import load
from compiler.engine.tape import Tape
from compiler.memory import LiveBytes, step_memory

PAIR = {"depth": 4, "coupling": "momentum_pair", "functions": {"F": DROPPING, "G": BRANCH}}
STRATEGIES = ("reversible", "checkpoint")


@RANDOM
@given(programs(), st.integers(0, 40), st.integers(0, 10), st.sampled_from(STRATEGIES))
def test_gradients_of_random_programs(
    program: dict[str, Any], results: int, count: int, strategy: str
) -> None:
    """However many results are kept, beside calls that are stored."""
    assert_keeping_changes_nothing(program, strategy, stored=count, results=results)


@pytest.mark.parametrize("schedule", [{}, {"every": 3}, {"slots": 2}], ids=str)
@pytest.mark.parametrize("results", [1, 5, 8, 50])
def test_beside_checkpoints_gradients_are_the_same_bit_for_bit(
    schedule: dict[str, int], results: int
) -> None:
    stage = network(PAIR).stages[0]
    streams = streams_for(stage, 3)
    wanted = stored(stage, streams)
    stage.set_backward("checkpoint", **schedule, results=results)
    assert_same(outcome(stage, streams), wanted)


@pytest.mark.parametrize("results", [1, 5, 8])
@pytest.mark.parametrize("gamma", ["0.5", "0.9", "{learn: 0.9, within: [0.5, 0.99]}"])
def test_in_exact_arithmetic_gradients_are_the_same_bit_for_bit(results: int, gamma: str) -> None:
    spec = small_spec({**PAIR, "arithmetic": "exact"}, **SMALL)
    stage = archspec.build(load(spec, [f"stages.trunk.constants.gamma={gamma}"])).stages[0]
    streams = tuple(s.float() for s in streams_for(stage, 3))
    wanted = stored(stage, streams)
    stage.set_backward("reversible", results=results)
    assert_same(outcome(stage, streams), wanted)


class Linear(TorchDispatchMode):
    """Counts the linear layers that are run: two in each call of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {False: 0, True: 0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.addmm.default:
            self.counts[archspec.is_replaying()] += 1
        return func(*args, **(kwargs or {}))


def linear_layers(model: nn.Module) -> dict[bool, int]:
    """Those of a training step: forward, and in replays."""
    with Linear() as linear:
        model(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
    linear.counts[False] -= 1  # the network's head
    return linear.counts


@pytest.mark.parametrize(("results", "replays"), [(0, 16), (1, 15), (5, 11), (8, 8), (30, 8)])
def test_replays_end_before_the_last_layer(results: int, replays: int) -> None:
    model = network({**additive(), "depth": 4, "backward": {"reversible": {"results": results}}})
    assert linear_layers(model) == {False: 16, True: replays}


@pytest.mark.parametrize(("every", "replays"), [(1, 12), (2, 14), (4, 15)])
def test_checkpoints_are_replayed_no_further_than_their_last_handle(
    every: int, replays: int
) -> None:
    """The streams after the last layer of each replay are not wanted."""
    model = network({**additive(), "depth": 4})
    model.set_backward("checkpoint", every=every)
    assert linear_layers(model) == {False: 16, True: replays}


def test_hooks_see_the_end_of_every_call() -> None:
    model = network({**additive(), "depth": 4, "backward": {"reversible": {"results": 8}}})
    ended = []
    model.stages[0].layers[1].F.register_forward_hook(lambda *_: ended.append(1))
    assert linear_layers(model) == {False: 16, True: 9}
    assert len(ended) == 2


def test_masks_behind_the_last_layer_are_kept() -> None:
    """They are small, and would keep the replay from ending before it."""
    dropping = ["layer_norm", {"mlp": 2}, {"drop_path": 0.3}]
    model = network({**additive(dropping, dropping), "backward": {"reversible": {"results": 9}}})
    assert linear_layers(model.train()) == {False: 12, True: 6}


def test_a_second_pass_and_a_gradient_of_the_gradient() -> None:
    model = network(PAIR)
    value = torch.randn(2, 5, 6, dtype=torch.float64)

    def gradients(strategy: str, results: int | None = None) -> list[Tensor]:
        model.set_backward(strategy, results=results)
        torch.manual_seed(3)
        leaf = value.clone().requires_grad_()
        loss = model(leaf).square().sum()
        first = torch.autograd.grad(loss, [leaf, *model.parameters()], create_graph=True)
        again = torch.autograd.grad(loss, leaf, retain_graph=True)
        loss = sum(g.square().sum() for g in first)
        return [*first, *again, *torch.autograd.grad(loss, [leaf, *model.parameters()])]

    wanted, found = gradients("store"), gradients("reversible", results=8)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_result_costs_its_bytes(strategy: str) -> None:
    """And nothing is left after a step."""
    model = network({**additive(), "depth": 8}).float()
    value = torch.randn(16, 5, 6)

    def peak(results: int) -> int:
        model.set_backward(strategy, results=results)
        return step_memory(model, lambda out: out.square().mean(), value).peak

    result = 16 * 5 * 6 * 4
    assert peak(12) - peak(4) == 8 * result
    with LiveBytes() as live:
        live.ignore([value, *model.parameters()])
        model(value).square().mean().backward()
        model.zero_grad()
    assert live.now == 0


def test_results_go_as_backward_passes_by_them() -> None:
    """What is left of them towards the end is for calls that are still to come."""
    model = network({**additive(), "depth": 8, "backward": {"reversible": {"results": 16}}})
    tapes = []

    def count(gradient: Tensor) -> None:
        found = [t for t in gc.get_objects() if issubclass(type(t), Tape)]
        tapes.append(sum(len(tape.kept_results) for tape in found))

    for layer in model.stages[0].layers:
        next(layer.F.parameters()).register_hook(count)
    model(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
    assert tapes == sorted(tapes, reverse=True)
    assert tapes[-1] <= 2 < 14 <= tapes[0]


def test_under_autocast_results_are_kept_as_functions_give_them() -> None:
    """In half of the bytes."""
    model = network({**additive(), "depth": 8}).float()
    value = torch.randn(16, 5, 6)

    def kept(results: int) -> int:
        model.set_backward("reversible", results=results)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            model(value)
            loss = model(value).square().mean()
            held = int(live.now)
            del loss
        return held

    assert kept(8) - kept(0) == 8 * 16 * 5 * 6 * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_function_is_replayed_whole() -> None:
    """It saves its tensors when all is computed."""
    model = network(additive())
    streams = streams_for(model.stages[0], 2)
    wanted = stored(model.stages[0], streams)
    for layer in model.stages[0].layers:
        layer.F.compile(backend="aot_eager")
    model.stages[0].set_backward("reversible", results=6)
    assert gradient_error(outcome(model.stages[0], streams), wanted) < 1e-12


def test_settings() -> None:
    model = network({**additive(), "backward": {"checkpoint": {"every": 2, "results": 3}}})
    stage = model.stages[0]
    assert stage.results == 3
    assert "backward='checkpoint' (every: 2, results: 3)" in repr(stage)
    model.set_backward("reversible", stored=1, results=2)
    assert "backward='reversible' (stored: 1, results: 2)" in repr(stage)
    with pytest.raises(ValueError, match="`results` goes with 'reversible' and 'checkpoint'"):
        model.set_backward("store", results=1)
    with pytest.raises(ValueError, match=r"whole number from 0 on, found 1\.5"):
        model.set_backward("reversible", results=1.5)  # type: ignore[arg-type]


def test_an_emitted_file_keeps_as_many() -> None:
    plain = {**PAIR, "functions": {"F": BRANCH, "G": BRANCH}}
    spec = small_spec({**plain, "backward": {"reversible": {"results": 8}}}, **SMALL)
    other = network_of(as_module(emitted_text(spec)))
    assert other.stages[0].results == 8
    with Linear() as linear:
        other(torch.randn(2, *other.input)).sum().backward()
    whole = network_of(as_module(emitted_text(small_spec(plain, **SMALL))))
    with Linear() as more:
        whole(torch.randn(2, *other.input)).sum().backward()
    assert sum(more.counts.values()) - sum(linear.counts.values()) == 8
