"""The linear part of programs: growth of the inverse, and bits that layers forget."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from one_stage import spec

import archspec
from archspec.finding import zoo
from archspec.loading import load
from compiler.growth import layer_matrix, stability
from compiler.plan import StagePlan
from compiler.resolve import resolve
from compiler.summary import summarise

FUNCTIONS = {"affine": "STUV", "additive": "FG", "momentum_pair": "FG", "verlet": "FG"}


def plan_of(coupling: str, *settings: str) -> StagePlan:
    """A stage of the named coupling; what its functions are plays no part here."""
    needed = FUNCTIONS.get(coupling, "F")
    given = [f"{name}: [linear: channels]" for name in needed]
    removed = [f"{name}: null" for name in "FG" if name not in needed]
    functions = f"stages.trunk.functions={{{', '.join(given + removed)}}}"
    stage = f"stages.trunk.coupling={coupling}"
    return resolve(load("rev_vit_digits", [stage, functions, *settings])).stages[0]


@pytest.mark.parametrize(
    ("gamma", "depth", "bits"),
    [(0.9, 12, 2), (0.9, 48, 7), (0.9, 200, 30), (0.5, 12, 12), (0.5, 48, 48)],
)
def test_momentum_forgets_as_published(gamma: float, depth: int, bits: int) -> None:
    plan = plan_of(
        "momentum", f"stages.trunk.constants.gamma={gamma}", f"stages.trunk.depth={depth}"
    )
    found = stability(plan)
    assert found.bits == pytest.approx(depth * math.log2(1 / gamma))
    assert round(found.bits) == bits
    # Between the contraction itself and a modest factor more.
    assert gamma**-depth <= found.growth < 20 * gamma**-depth


@pytest.mark.parametrize("coupling", ["additive", "verlet", "midpoint"])
def test_volume_and_size_keeping_couplings_neither_forget_nor_grow(coupling: str) -> None:
    found = stability(plan_of(coupling, "stages.trunk.depth=50"))
    assert found.bits == 0
    assert found.growth == pytest.approx(1)


@pytest.mark.parametrize("coupling", ["leapfrog", "reversible_heun", "asynchronous_leapfrog"])
def test_solvers_forget_nothing_and_grow_slowly(coupling: str) -> None:
    growth = [stability(plan_of(coupling, f"stages.trunk.depth={depth}")) for depth in (20, 40, 80)]
    assert [g.bits for g in growth] == pytest.approx([0, 0, 0], abs=1e-9)
    assert growth[2].growth <= 4.5 * growth[1].growth
    assert growth[1].growth <= 4.5 * growth[0].growth


def test_bdia_forgets_a_bit_a_layer_and_doubles() -> None:
    found = stability(plan_of("bdia", "stages.trunk.depth=20"))
    assert found.bits == pytest.approx(20)
    assert 2**20 <= found.growth < 2**23


def test_the_matrix_is_what_the_stage_does_without_its_functions() -> None:
    settings = ["stages.trunk.coupling=momentum_pair", "stages.trunk.depth=3"]
    settings.append("stages.trunk.constants.gamma=0.5 + 0.1*layer")
    stage = archspec.build("rev_vit_digits", settings).stages[0].double()
    for parameter in stage.parameters():
        torch.nn.init.zeros_(parameter)
    streams = torch.randn(4, 2, 16, 64, dtype=torch.float64)
    expected = streams
    for layer in range(3):
        expected = torch.einsum("st,tbnd->sbnd", layer_matrix(stage.plan, layer, {}), expected)
    torch.testing.assert_close(torch.stack(stage(*streams)), expected, rtol=1e-14, atol=1e-14)


def test_every_shipped_reversible_stage_has_a_finite_growth() -> None:
    for path in zoo().glob("*.yaml"):
        for stage in resolve(load(path)).stages:
            if not stage.invertible:
                continue
            found = stability(stage)
            # Affine couplings have theirs from the data.
            assert found is None or math.isfinite(found.growth)
            assert (found is None) == (path.stem in ("realnvp_digits", "glow_cifar10"))


def test_a_learned_coefficient_is_judged_at_the_worst_end_of_its_range() -> None:
    gamma = "stages.trunk.constants.gamma={learn: 0.9, within: [0.5, 0.99]}"
    found = stability(plan_of("momentum", gamma, "stages.trunk.depth=48"))
    assert found.bits == pytest.approx(48)
    assert found.growth >= 2**48
    model = archspec.build("momrev_vit_digits", [gamma, "stages.trunk.depth=48"])
    (stage,) = summarise(model, None).stages
    assert "at an end of the range of what it learns" in stage.warning


def test_learned_maps_count_as_the_identity() -> None:
    def growth(update: str, **stage: Any) -> float:
        one = spec(f"{update}x = 0.5*x + F(y); y += F(x)", **stage)
        one["stages"]["trunk"]["functions"].pop("A", None)
        found = stability(resolve(load(one)).stages[0])
        assert found is not None
        return found.growth

    for learned in ("actnorm", "invertible_linear"):
        assert growth("x = A(x); ", maps={"A": learned}) == growth("")


def test_scales_that_come_from_the_data_have_no_linear_part() -> None:
    assert stability(plan_of("affine")) is None


@pytest.mark.parametrize("update", ["x1 += x2/F(x2)", "x1 += F(x2)**-1"])
def test_programs_without_a_linear_part_at_zero_say_so(update: str) -> None:
    settings = [
        "stages.trunk.functions.G=",
        f"stages.trunk.update=['{update}', 'x1, x2 = x2, x1']",
        "stages.trunk.streams={x1: input, x2: input}",
        "stages.trunk.output=x1",
        "stages.trunk.functions.F=[linear: channels]",
    ]
    plan = resolve(load("rev_vit_digits", ["head=[pool: mean, linear: classes]", *settings]))
    assert stability(plan.stages[0]) is None
