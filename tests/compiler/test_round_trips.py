"""Streams through layers and back, and images read from what reaches a stage."""

from __future__ import annotations

import pytest
import torch
from small_networks import additive, network
from torch import nn

from compiler.drift import given_by
from compiler.functions.tokens import PatchEmbed, Position
from compiler.round_trips import read_back, round_trip, with_constants

MOMENTUM = {
    "depth": 6,
    "coupling": "momentum_pair",
    "functions": {"F": ["layer_norm", {"mlp": 2}], "G": ["layer_norm", {"mlp": 2}]},
}


def test_errors_are_those_of_the_arithmetic() -> None:
    model = network(MOMENTUM).eval()
    given = given_by(model, torch.randn(4, 5, 6, dtype=torch.float64))["trunk"]
    found = {name: round_trip(model.stages[0], given, 6, name) for name in ("float32", "bf16")}
    single, half = found["float32"], found["bf16"]
    assert single is not None
    assert half is not None
    assert 0 < single.error < 1e-5
    assert 1e-3 < half.error < 1
    exact = round_trip(model.stages[0], given, 6, "exact")
    assert exact is not None
    assert all(torch.equal(exact.back[name], before) for name, before in exact.before.items())
    fewer = round_trip(model.stages[0], given, 1, "float32")
    assert fewer is not None
    assert fewer.error < single.error


def test_a_smaller_gamma_drifts_further() -> None:
    model = network(MOMENTUM).eval()
    given = given_by(model, torch.randn(4, 5, 6, dtype=torch.float64))["trunk"]
    trips = [
        round_trip(with_constants(model.stages[0], {"gamma": gamma}), given, 6, "float32")
        for gamma in (0.2, 0.5, 0.9)
    ]
    errors = [trip.error for trip in trips if trip is not None]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[2]
    assert model.stages[0].plan.constants["gamma"] != 0.2


def test_streams_past_the_grid_are_told() -> None:
    model = network(additive()).eval()
    given = given_by(model, 1e6 * torch.randn(2, 5, 6, dtype=torch.float64))["trunk"]
    assert round_trip(model.stages[0], given, 3, "exact") is None


def test_only_constants_of_the_stage_change() -> None:
    stage = network(MOMENTUM).stages[0]
    with pytest.raises(ValueError, match="`beta` is no constant of stage `trunk`; its: gamma"):
        with_constants(stage, {"beta": 0.5})


def test_an_image_is_read_back_from_its_tokens() -> None:
    """Of a stem that loses nothing all of it, of one that does what least squares tell."""
    torch.manual_seed(0)
    stem = nn.Sequential(PatchEmbed(3, 32, 2), Position(16, 32)).double()
    image, change = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    moved = stem(image + change) - stem(image)
    torch.testing.assert_close(read_back(stem, image, moved), image + change)
    narrow = nn.Linear(6, 3).double()
    vector, moved = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    found = read_back(narrow, vector, moved)
    torch.testing.assert_close(found - vector, moved @ torch.linalg.pinv(narrow.weight).mT)


def test_of_a_stem_that_bends_to_first_order() -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()).double()
    image, change = torch.randn(2, 2, 1, 6, 6, dtype=torch.float64)
    found = read_back(stem, image, stem(image + 1e-6 * change) - stem(image))
    torch.testing.assert_close((found - image) * 1e6, change, atol=1e-3, rtol=1e-3)
