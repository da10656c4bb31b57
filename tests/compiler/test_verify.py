"""Verification finds what is wrong, and disturbs nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import archspec
from archspec.loading import zoo
from compiler import engine
from compiler.summary import summarise
from compiler.verify import verify

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
            assert 0 < stage.perturbation_gain < 1e3


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
        layer.program = tuple(
            replace(step, inverse=step.forward) if isinstance(step, engine.Update) else step
            for step in layer.program
        )
    monkeypatch.setattr("compiler.stage.lower_steps", lambda plan, index: layer.program)
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
