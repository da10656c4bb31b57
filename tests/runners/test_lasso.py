"""The Lasso: its optimum, ISTA as a network, and which networks come to rest at it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import archspec
from archspec.data import SparseCodes
from compiler.functions.pointwise import SoftThreshold
from runners.lasso import Lasso, ista, soft_threshold, solve, start_at_ista
from runners.sparse_codes import dictionary, measured

DATA = SparseCodes()
FLOATS = ("stages.trunk.arithmetic=float",)


@pytest.fixture(scope="module")
def lasso() -> Lasso:
    return Lasso(dictionary(DATA, 32, 64), 0.1)


@pytest.fixture(scope="module")
def measurements(lasso: Lasso) -> Tensor:
    return measured(DATA, lasso.dictionary, 50, 0)


def test_the_data_are_the_same_every_time_and_sparse(lasso: Lasso, measurements: Tensor) -> None:
    matrix = lasso.dictionary
    assert torch.equal(matrix, dictionary(DATA, 32, 64))
    torch.testing.assert_close(matrix.norm(dim=0), torch.ones(64, dtype=torch.float64))
    assert torch.equal(measurements, measured(DATA, matrix, 50, 0))
    assert not torch.equal(measurements, measured(DATA, matrix, 50, 1))
    other = SparseCodes(problem=1)
    assert not torch.equal(matrix, dictionary(other, 32, 64))
    none = SparseCodes(density=1e-12, noise=0.5)
    assert measured(none, matrix, 1000, 0).std().item() == pytest.approx(0.5, rel=0.02)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.floats(0.01, 2),
    st.integers(0, 2**20),
)
def test_the_optimum_has_no_duality_gap_and_ista_stays_there(
    m: int, n: int, penalty: float, seed: int
) -> None:
    found = SparseCodes(problem=seed, density=0.5)
    problem = Lasso(dictionary(found, m, n), penalty)
    samples = measured(found, problem.dictionary, 5, 0)
    codes = solve(problem, samples, 1e-10)
    gap, allowed = problem.gap(samples, codes), 1.1e-10 * samples.square().sum(1) / 2 + 1e-15
    assert (gap.abs() <= allowed).all()
    moved = ista(problem, samples, codes)
    least = problem.objective(samples, codes)
    assert (problem.objective(samples, moved) >= least - allowed).all()
    nothing = torch.zeros_like(codes)
    above = problem.objective(samples, nothing) - least
    assert (problem.gap(samples, nothing) >= above - allowed).all()


def test_scikit_learn_finds_the_same_optimum(lasso: Lasso, measurements: Tensor) -> None:
    from sklearn.linear_model import Lasso as Reference

    codes = solve(lasso, measurements)
    for sample, code in zip(measurements[:5], codes[:5], strict=True):
        # Its objective is divided by the number of measurements.
        reference = Reference(alpha=lasso.penalty / 32, fit_intercept=False, tol=1e-12)
        reference.fit(lasso.dictionary.numpy(), sample.numpy())
        torch.testing.assert_close(code, torch.from_numpy(reference.coef_), atol=1e-4, rtol=0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0, 3))
def test_the_layer_is_soft_thresholding(values: list[float], threshold: float) -> None:
    layer = SoftThreshold(len(values), threshold, -1).double()
    with torch.no_grad():
        layer.threshold.copy_(torch.tensor(threshold, dtype=torch.float64))
    value = torch.tensor([values], dtype=torch.float64)
    assert torch.equal(layer(value), soft_threshold(value, threshold))
    with torch.no_grad():
        layer.threshold.neg_()  # where training may take it
    assert torch.equal(layer(value), soft_threshold(value, threshold))


# Which networks come to rest ----------------------------------------------------------------------


def streams_at_ista(
    lasso: Lasso, measurements: Tensor, spec: str, layers: int, *settings: str
) -> list[dict[str, Tensor]]:
    """The streams before and after each layer of a deep network of ISTA's steps, in float64."""
    store = ["stages.trunk.backward=store", "stages.trunk.store_every=null"]
    model = archspec.build(spec, [*store, "stages.trunk.depth=1", *settings]).double()
    assert start_at_ista(model, lasso) == (2 if spec == "rev_lista" else 1)
    stage = model.stages[0]
    with torch.no_grad():
        found = [stage.split(measurements)]
        for _ in range(layers):
            found.append(stage(*found[-1]))
    return [dict(zip(stage.facts.streams, streams, strict=True)) for streams in found]


def moves(found: list[dict[str, Tensor]]) -> list[float]:
    """How far each layer moves the code x, the mean over samples."""
    return [
        float((after["x"] - before["x"]).norm(dim=1).mean()) for before, after in pairwise(found)
    ]


def test_lista_at_istas_weights_is_ista(lasso: Lasso, measurements: Tensor) -> None:
    codes = measurements.new_zeros(50, 64)
    for streams in streams_at_ista(lasso, measurements, "lista", 10):
        # Weights are those of a float64 network, and ISTA's sums are in another order.
        torch.testing.assert_close(streams["x"], codes, atol=1e-12, rtol=0)
        codes = ista(lasso, measurements, codes)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("lista", ()),
        *(
            ("momentum_lista", (*FLOATS, f"stages.trunk.constants.gamma={gamma}"))
            for gamma in ("0", "0.5", "0.9", "0.95")
        ),
    ],
)
def test_ista_and_momentum_come_to_rest_at_the_optimum(
    lasso: Lasso, measurements: Tensor, spec: str, settings: tuple[str, ...]
) -> None:
    found = streams_at_ista(lasso, measurements, spec, 1500, *settings)
    moved, last = moves(found), found[-1]
    best = solve(lasso, measurements, 1e-13)
    least = lasso.objective(measurements, best)
    assert (lasso.objective(measurements, last["x"]) - least).mean() < 1e-9
    assert (last["x"] - best).norm(dim=1).mean() < 1e-3
    assert moved[400] < 1e-3 * max(moved)
    assert moved[-1] < 1e-6 * max(moved)
    if "v" in last:
        assert last["v"].norm(dim=1).mean() < 1e-6


def test_on_a_grid_momentum_comes_to_rest_within_the_grid(
    lasso: Lasso, measurements: Tensor
) -> None:
    found = streams_at_ista(lasso, measurements, "momentum_lista", 400)
    assert moves(found)[-1] < 8 * 2**-14  # 64 channels, each within a unit of the grid
    least = lasso.objective(measurements, solve(lasso, measurements))
    assert (lasso.objective(measurements, found[-1]["x"]) - least).mean() < 1e-3


def test_a_revnet_does_not_come_to_rest(lasso: Lasso, measurements: Tensor) -> None:
    moved = moves(streams_at_ista(lasso, measurements, "rev_lista", 200))
    assert moved[5] > moved[0]
    assert moved[-1] > 1e6 * moved[5]


def test_the_revnet_leaves_the_optimum_where_both_functions_are_still(
    lasso: Lasso, measurements: Tensor
) -> None:
    """The least objective is a fixed point, and repels: a coupling keeps volumes."""
    model = archspec.build("rev_lista", ["stages.trunk.depth=20"]).double()
    start_at_ista(model, lasso)
    stage, best = model.stages[0], solve(lasso, measurements, 1e-14)
    noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(0)).to(best)

    def apart(codes: Tensor) -> float:
        with torch.no_grad():
            x, _, z = stage(codes, measurements, best)
        return float(torch.cat((x - best, z - best)).norm())

    start = float((1e-4 * noise).norm())
    assert apart(best + 1e-4 * noise) > 1e3 * start


def test_only_functions_of_this_form_start_at_ista(lasso: Lasso) -> None:
    other = archspec.build("lista", ["stages.trunk.functions.F=[add, tanh]", "input.features=[64]"])
    assert start_at_ista(other, lasso) == 0
    narrow = archspec.build("lista", ["input.features=[16]"])
    assert start_at_ista(narrow, lasso) == 0
    bias = archspec.build("lista", ["stages.trunk.functions.F.1.linear.bias=true"])
    assert start_at_ista(bias, lasso) == 20
