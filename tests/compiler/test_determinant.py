"""The log-determinant that is derived beside the inverse, held against the Jacobian of autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint_passes import RANDOM
from hypothesis import given, note
from hypothesis import strategies as st
from random_programs import PROGRESS, given_to, programs
from small_networks import STRATEGIES, gradient_error, network, outcome, streams_for
from torch import Tensor

from archspec.expressions import LOG_DETERMINANT
from compiler.base_flow import map_log_determinant
from compiler.determinant import with_log_determinant
from compiler.stage import Stage, with_plan


def counting(stage: Stage) -> Stage:
    """The same stage with its log-determinant among the streams."""
    return with_plan(stage, with_log_determinant(stage.plan))


def jacobian_log_determinant(stage: Stage, streams: tuple[Tensor, ...], **keys: Any) -> Tensor:
    """log|det| of streams before → streams after, of a batch of one."""
    sizes = [stream.shape for stream in streams]
    counts = [stream.numel() for stream in streams]

    def mapped(flat: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(flat.split(counts), sizes, strict=True)]
        return torch.cat([stream.flatten() for stream in stage(*parts, **keys)])

    flat = torch.cat([stream.flatten() for stream in streams])
    stage.set_backward("store")
    found = torch.autograd.functional.jacobian(mapped, flat)  # type: ignore[no-untyped-call]
    return torch.linalg.slogdet(found).logabsdet


def stage_of(program: dict[str, Any]) -> Stage:
    head = [] if "features" in program["input"] else [{"pool": "mean"}]
    head = [*head, {"linear": "classes"}]
    model = network(program["stage"], input=program["input"], head=head, side=program["side"])
    model.set_progress(PROGRESS)
    stage: Stage = model.eval().stages[0]
    return stage


@RANDOM
@given(programs())
def test_random_programs(program: dict[str, Any]) -> None:
    """In evaluation, where the functions are no longer random; what is drawn is given."""
    note(str(program))
    stage = stage_of(program)
    streams = streams_for(stage, 1)
    draws = stage.train().draw(streams[0])
    stage.eval()
    given = {"draws": draws, **given_to(stage, 1, streams[0])}
    wanted = jacobian_log_determinant(stage, streams, **given)
    counted = counting(stage)
    *after, log = counted(*streams, streams[0].new_zeros(1, 1), **given)
    torch.testing.assert_close(log[0, 0] + map_log_determinant(counted), wanted)
    plain = stage(*streams, **given)
    assert all(torch.equal(one, other) for one, other in zip(after, plain, strict=True))
    *before, back = counting(stage).inverse(*after, log, **given)
    torch.testing.assert_close(back, torch.zeros_like(back), atol=1e-8, rtol=0)
    torch.testing.assert_close(tuple(before), streams)


@RANDOM
@given(programs(), st.sampled_from(["reversible", "checkpoint"]))
def test_its_gradients_store_no_activations_either(program: dict[str, Any], strategy: str) -> None:
    note(str(program))
    stage = counting(stage_of(program).train())
    streams = (*streams_for(stage, 2)[:-1], torch.zeros(2, 1, dtype=torch.float64))
    given = given_to(stage, 2, streams[0])
    stage.set_backward("store")
    wanted = outcome(stage, streams, **given)
    stage.set_backward(strategy)
    found = outcome(stage, streams, **given)
    assert all(torch.equal(f, w) for f, w in zip(found.outputs, wanted.outputs, strict=True))
    assert gradient_error(found, wanted) < 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_momentum_is_a_known_change_of_volume(strategy: str) -> None:
    functions = {"F": ["layer_norm", {"mlp": 2}]}
    halves = {"x": "chunk(input, 1, 2)", "v": "chunk(input, 2, 2)"}
    update = ["v = gamma*v + F(x)", "x += v"]
    own = {"depth": 7, "streams": halves, "constants": {"gamma": 0.9}, "update": update}
    stage = network({**own, "functions": functions, "output": "concat(x, v)"}).stages[0]
    stage = counting(stage)
    stage.set_backward(strategy)
    *_, log = stage(*streams_for(stage, 3)[:-1], torch.zeros(3, 1, dtype=torch.float64))
    assert stage.facts.final[LOG_DETERMINANT] == (1,)
    wanted = 7 * 15 * torch.tensor(0.9, dtype=torch.float64).log()
    torch.testing.assert_close(log, wanted.expand(3, 1))


def test_in_exact_arithmetic() -> None:
    """The stream that counts is no part of the grid: it may grow past its range."""
    from archspec import Information

    functions = {"F": ["layer_norm", {"mlp": 2}], "G": ["tanh"]}
    exact = {"exact": {"fraction_bits": 22}}  # streams stay below 4
    own = {"depth": 6, "coupling": "momentum_pair", "functions": functions, "arithmetic": exact}
    stage = network(own, torch.float32).stages[0]
    plain = tuple(stream / 8 for stream in streams_for(stage, 2))
    twin = counting(stage)
    one, other = Information(), Information()
    wanted = stage(*plain, information=one)
    *found, log = twin(*plain, torch.zeros(2, 1), information=other)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    elements = sum(s[0].numel() for s in plain)
    wanted_log = 6 * elements / 2 * torch.tensor(0.9).log()
    torch.testing.assert_close(log[0, 0], wanted_log, rtol=1e-5, atol=0)
    assert wanted_log < -4
    *back, zero = twin.inverse(*found, log, information=other)
    before = stage.inverse(*wanted, information=one)
    assert all(torch.equal(b, w) for b, w in zip(back, before, strict=True))
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-3, rtol=0)
