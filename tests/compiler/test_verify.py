"""Verification finds what is wrong, and disturbs nothing."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy
import pytest
import torch
from one_stage import spec as one_spec

import archspec
from archspec.finding import zoo
from compiler import engine
from compiler.summary import summarise
from compiler.verify import VerificationError, verify

DIGITS = sorted(path.stem for path in zoo().glob("*_digits.yaml"))


@pytest.mark.parametrize("name", DIGITS)
def test_shipped_specs_pass(name: str) -> None:
    for stage in verify(archspec.build(name)):
        assert stage.passed
        if stage.gradient_error is not None:
            assert stage.gradient_error < 1e-5
            assert stage.gradient_error_float64 < 1e-12
        if stage.roundtrip_error is not None:
            assert stage.roundtrip_error < 1e-5
            assert stage.perturbation_gain is None or 0 < stage.perturbation_gain < 1e3


def test_exact_arithmetic_is_exact() -> None:
    settings = ["stages.trunk.arithmetic=exact", "stages.trunk.constants.gamma=0.5"]
    model = archspec.build("momrev_vit_digits", [*settings, "stages.trunk.depth=30"])
    (stage,) = verify(model)
    assert stage.passed
    errors = stage.roundtrip_error, stage.gradient_error, stage.gradient_error_float64
    assert errors == (0, 0, 0)
    (summary,) = summarise(model, [stage]).stages
    assert summary.warning is None
    assert summary.exact.bits == summary.exact.bound == 60
    assert summary.exact.forms["v1 = gamma*v1 + (1 - gamma)*F(x2)"].startswith("packed bits")


def test_streams_stored_on_the_way() -> None:
    """A reconstruction is as good as over so many layers; memory grows with their number."""
    settings = ["stages.trunk.constants.gamma=0.5", "stages.trunk.depth=30"]
    every = [*settings, "stages.trunk.store_every=8"]
    (lost,), (kept,) = (verify(archspec.build("momrev_vit_digits", s)) for s in (settings, every))
    assert not lost.passed
    assert kept.passed
    assert kept.gradient_error < 1e-4
    few, many = (summarise(archspec.build("momrev_vit_digits", s), None) for s in (settings, every))
    streams = 4 * 16 * 64 * 4
    assert abs(many.kept_bytes - few.kept_bytes - 3 * streams) < 0.01 * streams
    assert many.stages[0].inverse_growth < 1e3 < few.stages[0].inverse_growth


def test_nothing_is_disturbed() -> None:
    model = archspec.build("revnet_digits")
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    verify(model)
    assert torch.equal(generator, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(stage.backward == "reversible" for stage in model.stages)


def test_a_wrong_inverse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = archspec.build("rev_vit_digits")
    for layer in model.stages[0].layers:
        layer.steps = tuple(
            replace(step, inverse=step.forward) if isinstance(step, engine.Update) else step
            for step in layer.steps
        )
    monkeypatch.setattr("compiler.stage.lower_steps", lambda plan, index, chosen: layer.steps)
    (stage,) = verify(model)
    assert not stage.passed
    assert stage.roundtrip_error > 0.1
    assert stage.gradient_error_float64 > 1e-3


def test_a_program_without_inverse_in_evaluation_is_measured_in_training() -> None:
    settings = ["stages.trunk.coupling=bdia", "stages.trunk.functions.G="]
    (stage,) = verify(archspec.build("rev_vit_digits", settings))
    assert stage.passed
    assert stage.roundtrip_error is not None


def test_errors_that_are_no_numbers_fail() -> None:
    (stage,) = verify(archspec.build("rev_vit_digits"))
    assert not replace(stage, gradient_error=float("nan")).passed


def test_the_summary_shows_the_worst_stage() -> None:
    model = archspec.build("revnet_digits")
    stages = verify(model)
    found = summarise(model, stages).verification
    assert found is not None
    assert found["gradient_error"] == max(stage.gradient_error for stage in stages)
    spoilt = [stages[0], replace(stages[1], gradient_error=float("nan"))]
    found = summarise(model, spoilt).verification
    assert found is not None
    assert found["passed"] is False
    assert found["gradient_error"] != found["gradient_error"]


def test_one_small_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one tensor must not drown in the norm of all the others."""
    from compiler import verify as module

    honest = module._gradients

    def spoilt(stage, *rest):
        found = honest(stage, *rest)
        if stage.backward == "reversible":
            smallest = min(range(len(found)), key=lambda i: float(found[i].norm()))
            found[smallest] = found[smallest] * 1.5 + 1e-2 * max(float(g.norm()) for g in found)
        return found

    monkeypatch.setattr(module, "_gradients", spoilt)
    (stage,) = verify(archspec.build("rev_vit_digits"))
    assert not stage.passed


def test_momentum_that_forgets_too_much_fails_before_it_is_hopeless() -> None:
    """At gamma 0.5 and depth 18 single gradients are off by more than a hundredth in float32."""
    settings = ["stages.trunk.constants.gamma=0.5", "stages.trunk.depth=18"]
    (stage,) = verify(archspec.build("momrev_vit_digits", settings))
    assert not stage.passed
    assert stage.gradient_error_float64 < 1e-8


def test_what_is_predicted_warns_where_growth_is_not_known() -> None:
    functions = "{S: [linear: channels], T: [linear: channels], U: [linear: channels], "
    functions += "V: [linear: channels], F: null, G: null}"
    settings = [
        "stages.trunk.coupling=affine",
        f"stages.trunk.functions={functions}",
        "stages.trunk.constants.bound=5",
        "stages.trunk.depth=8",
    ]
    model = archspec.build("rev_vit_digits", settings)
    (stage,) = summarise(model, verify(model)).stages
    assert stage.inverse_growth is None
    assert "to give float32 streams back with a relative error of" in stage.warning


def test_the_inverse_of_a_program_with_temporaries_is_a_program() -> None:
    settings = [
        "stages.trunk.functions.G=",
        "stages.trunk.update=[k := F(x2), x1 = 2*x1 + k, x1 += k*exp(tanh(k))]",
        "stages.trunk.streams={x1: input, x2: input}",
        "stages.trunk.output=concat(x1, x2)",
    ]
    (stage,) = summarise(archspec.build("rev_vit_digits", settings), None).stages
    assert stage.inverse == ["k := F(x2)", "x1 -= k*exp(tanh(k))", "x1 = (x1 - k)/2"]


def test_json_has_no_infinities() -> None:
    settings = ["stages.trunk.constants.gamma=0.001", "stages.trunk.depth=120"]
    plain = summarise(archspec.build("momrev_vit_digits", settings), None).as_dict()
    json.dumps(plain, allow_nan=False)


def test_normed_features_can_be_counted() -> None:
    spec = {
        "archspec": 1,
        "name": "features",
        "summary": "Batch norm on features",
        "input": {"features": [6]},
        "stages": {
            "trunk": {"depth": 2, "coupling": "residual", "functions": {"F": ["batch_norm"]}}
        },
        "head": [{"linear": "classes"}],
        "task": {"classify": 3},
    }
    spec["stages"]["trunk"]["backward"] = "checkpoint"
    model = archspec.build(spec)
    assert summarise(model, verify(model)).kept_bytes > 0


ANNEALED = [
    "x = A(x)",
    "x = (0.3 + 0.7*(1 - progress))*x + F(y)",
    "y = (0.05 + 0.95*(1 - progress))*y + F(x)",
]
LINEAR = {"F": ["layer_norm", {"linear": "channels"}]}


def test_the_end_of_a_schedule_counts() -> None:
    one = one_spec(ANNEALED, depth=12, maps={"A": "actnorm"})
    one["stages"]["trunk"]["functions"] = LINEAR
    model = archspec.build(one)
    (stage,) = verify(model)
    assert not stage.passed
    assert float(model.stages[0].progress) == 0
    (summary,) = summarise(model, [stage]).stages
    assert "amplifies rounding" in summary.warning


def test_the_ends_of_what_is_learned_warn_and_do_not_fail() -> None:
    gamma = {"gamma": {"learn": 0.95, "within": [0.2, 0.99], "per": "channel"}}
    model = archspec.build(one_spec("x = gamma*x + F(y); y = gamma*y + F(x)", gamma, depth=12))
    (stage,) = verify(model)
    assert stage.passed
    low, high = stage.range_ends
    assert low.gradient_error > 1e-2 > high.gradient_error
    (summary,) = summarise(model, [stage]).stages
    said = "where training may take gamma, at the low end of its range, gradients of stage trunk"
    assert f"{said} are off by {low.gradient_error:.2g}" in summary.warning
    assert "high end" not in summary.warning
    worst = replace(stage, range_ends=(replace(low, gradient_error=math.inf),))
    plain = summarise(model, [worst]).as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["verification"]["passed"]


class Odd(torch.nn.Module):
    """Functions that cannot be computed again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.count = how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.how == "in place":
            return x.mul_(2)
        if self.how == "numpy":
            return x * numpy.random.rand()
        if self.how == "counter":
            return x * self.count
        return x * torch.rand(())


def odd(how: str) -> torch.nn.Module:
    model = archspec.build(one_spec("x += F(y); y += F(x)"))
    for layer in model.stages[0].layers:
        layer.F = Odd(how)
    return model


@pytest.mark.parametrize("how", ["numpy", "counter"])
def test_functions_that_do_not_give_the_same_twice_are_named(how: str) -> None:
    model = odd(how)
    (stage,) = verify(model)
    assert not stage.passed
    assert not stage.repeatable
    (summary,) = summarise(model, [stage]).stages
    assert summary.warning is None


@pytest.mark.parametrize(
    ("how", "message"),
    [("in place", "changes its argument in place"), ("torch", "drew random numbers")],
)
def test_what_cannot_be_verified_names_its_stage(how: str, message: str) -> None:
    with pytest.raises(VerificationError, match=f"stage `trunk` cannot be verified: .*{message}"):
        verify(odd(how))


def test_an_inverse_that_amplifies_does_not_blame_the_functions() -> None:
    settings = ["stages.trunk.constants.gamma=0.5", "stages.trunk.depth=40"]
    (stage,) = verify(archspec.build("momrev_vit_digits", settings))
    assert not stage.passed
    assert stage.repeatable
