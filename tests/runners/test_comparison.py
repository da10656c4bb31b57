"""Comparison: statistics against scipy's own, curves, arms of sweeps, and the report's files."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from archspec.diagnostics import SpecError
from archspec.loading import zoo
from archspec.study import Entrant, Study, load_study
from runners.comparison.arms import baseline_of, open_arms, parse_sweep
from runners.comparison.curves import Curve
from runners.comparison.statistics import estimate, is_apart, paired_difference
from runners.tasks import ACCURACY, SUBOPTIMALITY

SOME = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def study(*names: str, baseline: str = "") -> Study:
    return Study("s", tuple(Entrant(n, zoo() / f"{n}.yaml") for n in names), baseline=baseline)


@given(SOME)
def test_intervals_are_students(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(numpy.mean(values))
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=numpy.mean(values), scale=error)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval() -> None:
    found = estimate([0.5])
    assert (found.mean, found.low, found.high, found.half_width) == (0.5, None, None, None)
    assert not is_apart(found)


@given(SOME, st.floats(-1, 1))
def test_what_seeds_share_cancels_out(values: list[float], shift: float) -> None:
    found = paired_difference([value + shift for value in values], values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.half_width == pytest.approx(0, abs=1e-6)


def test_a_difference_is_apart_only_where_zero_is_outside() -> None:
    assert is_apart(estimate([0.1, 0.11, 0.12]))
    assert is_apart(estimate([-0.1, -0.11, -0.12]))
    assert not is_apart(estimate([-0.1, 0.11, 0.02]))


def test_when_a_curve_comes_to_a_value() -> None:
    curve = Curve((0.2, 0.5, 0.4, 0.8), (1.0, 2.0, 3.0, 4.0), (10.0,) * 4)
    assert curve.area == pytest.approx(0.475)
    assert [curve.reaches(v, ACCURACY) for v in (0.1, 0.5, 0.6, 0.9)] == [1, 2, 4, None]
    assert [curve.reaches(v, SUBOPTIMALITY) for v in (0.2, 0.1)] == [1, None]


# Arms ---------------------------------------------------------------------------------------------


def test_a_sweep_reaches_the_specs_that_have_it() -> None:
    sweeps = [parse_sweep("constants.gamma=0.5, 0.9"), parse_sweep("train.epochs=1,2")]
    arms = open_arms(study("rev_vit_digits", "momrev_vit_digits"), sweeps)
    assert [arm.label for arm in arms] == [
        "rev_vit_digits epochs=1",
        "rev_vit_digits epochs=2",
        *(f"momrev_vit_digits gamma={g} epochs={e}" for g in ("0.5", "0.9") for e in (1, 2)),
    ]
    gammas = {arm.loaded.spec.stages["trunk"].constants.get("gamma") for arm in arms}
    assert gammas == {None, 0.5, 0.9}
    assert len({arm.folder for arm in arms}) == 6
    seeded = arms[3].seeded(7).spec
    assert seeded.train is not None
    assert (seeded.train.seed, seeded.train.epochs) == (7, 2)


def test_what_has_no_inverse_is_checkpointed_and_says_so() -> None:
    arms = open_arms(study("momrev_vit_digits"), [parse_sweep("constants.gamma=0,0.9")])
    strategies = [arm.loaded.spec.stages["trunk"].backward.kind for arm in arms]
    assert strategies == ["checkpoint", "reversible"]
    assert ["no inverse" in arm.note for arm in arms] == [True, False]


def test_values_in_brackets_are_not_parted() -> None:
    assert parse_sweep("a.b=[1, 2],{x: 1, y: 2}").values == ("[1, 2]", "{x: 1, y: 2}")


@pytest.mark.parametrize("text", ["gamma", "=1", "gamma=", "gamma=1,,2"])
def test_what_is_no_sweep(text: str) -> None:
    with pytest.raises(SpecError, match="is not of the form"):
        parse_sweep(text)


def test_a_sweep_of_nothing() -> None:
    with pytest.raises(SpecError, match=r"none of these specs has constants\.gamma"):
        open_arms(study("rev_vit_digits"), [parse_sweep("constants.gamma=1")])


def test_mistakes_of_swept_values_are_told() -> None:
    with pytest.raises(SpecError, match="E105"):
        open_arms(study("rev_vit_digits"), [parse_sweep("train.epochs=many")])


def test_the_baseline() -> None:
    named = study("rev_vit_digits", "vit_digits", baseline="vit_digits")
    assert baseline_of(named, open_arms(named)).label == "vit_digits"
    plain = study("rev_vit_digits", "vit_digits")
    assert baseline_of(plain, open_arms(plain)).label == "rev_vit_digits"
    odd = study("rev_vit_digits", baseline="rev_vit_digit")
    with pytest.raises(SpecError, match="did you mean `rev_vit_digits`"):
        baseline_of(odd, open_arms(odd))


# Studies ------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_is_read(tmp_path: Path) -> None:
    text = """archspec: 1
study: mine
seeds: 2
baseline: a
set: [train.epochs=4]
specs:
  a: rev_vit_digits
  b: {spec: momrev_vit_digits, set: [stages.trunk.constants.gamma=0.5]}
"""
    found = load_study(written(tmp_path, text))
    assert (found.name, found.seeds, found.baseline) == ("mine", 2, "a")
    assert [e.settings for e in found.entrants] == [
        ("train.epochs=4",),
        ("train.epochs=4", "stages.trunk.constants.gamma=0.5"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("baseline: c", r"4:1: error\[E503\] the baseline `c` is not among the specs"),
        ("seed: 4", r"error\[E103\] unknown key `seed`"),
        ("specs: {a: rev_vit_digit}", r"error\[E102\]"),
        ("seeds: none", r"error\[E105\]"),
    ],
)
def test_a_wrong_study_says_where(line: str, said: str, tmp_path: Path) -> None:
    text = f"archspec: 1\nstudy: mine\nspecs: {{a: rev_vit_digits}}\n{line}\n"
    with pytest.raises(SpecError, match=said):
        load_study(written(tmp_path, text))


def test_a_study_of_a_spec_that_is_not_there(tmp_path: Path) -> None:
    text = "archspec: 1\nstudy: mine\nspecs:\n  a: rev_vit_digit\n  b: ../b.yaml\n"
    with pytest.raises(SpecError, match=r"4:6: error\[E501\] there is no spec `rev_vit_digit`"):
        load_study(written(tmp_path, text))


@pytest.mark.parametrize("path", sorted((zoo() / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_studies_compare_networks_of_one_size(path: Path) -> None:
    from compiler.catalogue import entry
    from runners.comparison.study import check_same_data

    found = load_study(path)
    arms = open_arms(found)
    assert check_same_data(arms) == []
    sizes = [entry(arm.loaded).parameters for arm in arms]
    assert max(sizes) / min(sizes) < 1.01
    assert found.summary
