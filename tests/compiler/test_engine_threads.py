"""Threads that train at once, and Ctrl-C in the middle of a backward pass."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix_functions import Dense, with_functions
from matrix_machinery import at_once, one_pass
from plain_networks import Case, Wanted, assert_alike, backward, pair, trunk, value
from small_networks import STRATEGIES, additive, network
from torch import Tensor, nn

import archspec

REPLAYED = ("checkpoint", "reversible")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_models_in_two_threads(strategy: str) -> None:
    plain, models = zip(*(pair(Case(c, strategy)) for c in ("additive", "momentum")), strict=True)

    def several(model: Any, scale: float) -> Wanted:
        return [g for _ in range(5) for g in one_pass(model, scale)]

    wanted = [several(model, scale) for model, scale in zip(plain, (1.0, 2.0), strict=True)]
    found = at_once(
        *(lambda m=m, s=s: several(m, s) for m, s in zip(models, (1.0, 2.0), strict=True))
    )
    for a, b in zip(found, wanted, strict=True):
        assert_alike(a, b)


class Waiting(Dense):
    """Waits, in its first replay, until the other thread has looked around."""

    replaying = threading.Event()
    seen = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if archspec.is_replaying():
            self.replaying.set()
            assert self.seen.wait(20)
        return super().forward(x)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_is_replaying_is_the_threads_own(strategy: str) -> None:
    Waiting.replaying.clear()
    Waiting.seen.clear()
    case = Case("additive", strategy)
    _, model = pair(case)
    with_functions(case, Waiting)(model)

    def look() -> bool:
        assert Waiting.replaying.wait(20)
        here = archspec.is_replaying()
        Waiting.seen.set()
        return here

    _, elsewhere = at_once(lambda: one_pass(model, 1.0), look)
    assert elsewhere is False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_normalised_model_in_two_threads(strategy: str) -> None:
    """Replays put copies in the place of batch statistics: no other thread may take them for the
    module's own."""
    layers = [{"linear": "channels"}, "batch_norm", "tanh"]
    keys: dict[str, Any] = {"input": {"features": [6]}, "stem": [{"linear": 6}]}
    functions = {"F": layers, "G": layers}
    plain, model = pair(Case("additive", strategy), functions=functions, **keys)
    before = list(model.buffers())
    passes = 10
    inputs = torch.randn(8, 6, dtype=torch.float64)

    def run(model: nn.Module, scale: float) -> Wanted:
        wanted = list(model.parameters())
        return [
            g
            for _ in range(passes)
            for g in torch.autograd.grad(model(scale * inputs).square().sum(), wanted)
        ]

    wanted = [run(plain, scale) for scale in (1.0, 2.0)]
    found = at_once(lambda: run(model, 1.0), lambda: run(model, 2.0))
    for a, b in zip(found, wanted, strict=True):
        assert_alike(a, b, 1e-10)
    assert all(a is b for a, b in zip(before, model.buffers(), strict=True))
    if strategy != "store":
        counted = [int(b) for n, b in model.named_buffers() if n.endswith("batches_tracked")]
        assert counted == [2 * passes] * len(counted)


class DrawingElsewhere(Dense):
    """Another thread draws from the generator while the function does."""

    def forward(self, x: Tensor) -> Tensor:
        if not archspec.is_replaying():
            thread = threading.Thread(target=lambda: torch.rand(3))
            thread.start()
            thread.join()
        return nn.functional.dropout(super().forward(x), 0.5)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_numbers_drawn_by_another_thread_are_no_wrong_gradient(strategy: str) -> None:
    case = Case("additive", strategy)
    _, model = pair(case)
    with_functions(case, DrawingElsewhere)(model)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="drew other random numbers"):
        backward(model(value()))
    assert not archspec.is_replaying()
    torch.set_rng_state(state)


class Beside(Dense):
    """Draws nothing, while another thread does."""

    def forward(self, x: Tensor) -> Tensor:
        if not archspec.is_replaying():
            thread = threading.Thread(target=lambda: torch.rand(3))
            thread.start()
            thread.join()
        return super().forward(x)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_another_thread_may_draw_while_a_function_does_not(strategy: str) -> None:
    case = Case("additive", strategy)
    plain, model = pair(case)
    results = []
    for built in (plain, model):
        torch.manual_seed(4)
        with_functions(case, Beside)(built)
        results.append(one_pass(built, 1.0))
    assert_alike(results[1], results[0])


# Ctrl-C ------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, time
sys.path.insert(0, "tests/compiler")
import torch
import archspec
from small_networks import additive, gradient_error, network, outcome, streams_for

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
layers = [{"conv": {}}, "batch_norm", "tanh", {"dropout": 0.3}]
model = network(additive(layers, layers, backward=sys.argv[1]), input={"image": [4, 8, 8]})
stage = model.stages[0]
streams = streams_for(stage)
before = {n: b.clone() for n, b in stage.named_buffers()}
wanted = outcome(stage, streams)
stage.load_state_dict(before, strict=False)

def press(module, given):
    if archspec.is_replaying():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # somewhere in here, or in the function
            time.sleep(0.001)

loss = sum(out.square().sum() for out in stage(*streams))
state = torch.get_rng_state()
counted = {n: b.clone() for n, b in stage.named_buffers()}
modes = [m.training for m in stage.modules()]
flags = [p.requires_grad for p in stage.parameters()]
handle = stage.layers[1].F.batch_norm.register_forward_pre_hook(press)
try:
    loss.backward()
except KeyboardInterrupt:
    print("interrupted")
handle.remove()
stage.zero_grad()
assert not archspec.is_replaying()
assert torch.is_grad_enabled()
assert torch.equal(torch.get_rng_state(), state)
assert all(torch.equal(b, counted[n]) for n, b in stage.named_buffers())
assert [m.training for m in stage.modules()] == modes
assert [p.requires_grad for p in stage.parameters()] == flags
stage.load_state_dict(before, strict=False)
found = outcome(stage, streams)
assert gradient_error(found, wanted) == 0
print("clean")
"""


@pytest.mark.parametrize("strategy", REPLAYED)
def test_a_signal_in_the_middle_of_backward(strategy: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, strategy], capture_output=True, text=True, cwd=root
    )
    assert done.stdout.split() == ["interrupted", "clean"], done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("strategy", REPLAYED)
def test_the_graph_of_an_interrupted_backward_is_let_go(strategy: str) -> None:
    model = network(additive(backward=strategy))
    stage = trunk(model)
    function = stage.layers[1].F

    def interrupt(*_: Any) -> None:
        if archspec.is_replaying():
            raise KeyboardInterrupt

    handle = function.register_forward_pre_hook(interrupt)
    streams = streams_of_stage(model)
    with pytest.raises(KeyboardInterrupt):
        sum(out.square().sum() for out in stage(*streams)).backward()
    handle.remove()
    model.zero_grad()
    sum(out.square().sum() for out in stage(*streams)).backward()
    found = [p.grad for p in stage.parameters()]
    other = network(additive(backward="store"))
    sum(out.square().sum() for out in trunk(other)(*streams)).backward()
    assert_alike(found, [p.grad for p in trunk(other).parameters()])


def streams_of_stage(model: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
