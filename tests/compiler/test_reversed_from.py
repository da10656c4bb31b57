"""Stages that are checkpointed up to a progress of training, and reversed from there on."""

from __future__ import annotations

import pytest
import torch
from checkpoint_passes import DROPPING, assert_same, same, stored
from emitted_file import as_module, emitted_text, network_of
from exact_stages import SMALL
from small_networks import BRANCH, assert_same_outputs, network, outcome, streams_for
from small_networks import spec as small_spec

import archspec

WARMING = {
    "depth": 5,
    "coupling": "momentum_pair",
    "functions": {"F": DROPPING, "G": BRANCH},
    "constants": {"gamma": "0.9*progress"},
    "backward": {"reversible": {"from": 0.25}},
}


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_checkpointed_until_then(progress: float, arithmetic: str) -> None:
    model = network({**WARMING, "arithmetic": arithmetic}, torch.float32, **SMALL)
    model.set_progress(progress)
    stage = model.stages[0]
    streams = streams_for(stage)
    found = outcome(stage, streams)
    wanted = stored(stage, streams)
    if arithmetic == "exact" or progress < 0.25:
        assert_same(found, wanted)
    else:
        assert_same_outputs(found, wanted)
        assert any(not same(g, wanted.gradients[n]) for n, g in found.gradients.items())
    assert stage.has_inverse == (progress >= 0.25)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_there_is_no_inverse_before(arithmetic: str) -> None:
    model = network({**WARMING, "arithmetic": arithmetic}, torch.float32, **SMALL).eval()
    stage = model.stages[0]
    streams = streams_for(stage)
    with torch.no_grad():
        final = stage(*streams)
        with pytest.raises(RuntimeError, match=r"no inverse before training's progress is 0\.25"):
            stage.inverse(*final, information=archspec.Information())
        model.set_progress(0.25)
        information = archspec.Information()
        final = stage(*streams, information=information)
        back = stage.inverse(*final, information=information)
    off = max(float((a - b).abs().max()) for a, b in zip(back, streams, strict=True))
    assert off < (1e-4 if arithmetic == "exact" else 1e-1)


def test_nothing_is_kept_for_an_inverse_that_there_is_not() -> None:
    stage = network({**WARMING, "arithmetic": "exact"}, torch.float32, **SMALL).stages[0]
    with pytest.raises(ValueError, match="no inverse before"):
        stage(*streams_for(stage), information=archspec.Information())


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_emitted_files_and_builds_start_where_reversing_does(arithmetic: str) -> None:
    from compiler.drift import drift, given_by
    from compiler.summary import summarise
    from compiler.verify import verify

    spec = small_spec({**WARMING, "arithmetic": arithmetic}, **SMALL)
    model = archspec.build(spec)
    assert model.plan.stages[0].ends_of_training == (0.25, 1.0)
    (verified,) = verify(model)
    assert verified.passed
    assert summarise(model, [verified]).kept_bytes is not None
    drifted = drift(model.stages[0], given_by(model, torch.randn(2, 3, 4))["trunk"])
    assert all(0 <= error < 1e3 for error in drifted.float32)
    module = as_module(emitted_text(spec))
    assert module.self_check(network_of(module))
