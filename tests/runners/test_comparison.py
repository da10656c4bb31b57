"""Comparison: statistics against scipy's own, curves, arms of sweeps, and the report's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from archspec.diagnostics import SpecError
from archspec.finding import zoo
from archspec.loading import load
from archspec.study import Entrant, Study, load_study
from runners.comparison.arms import Arm, baseline_of, open_arms, parse_sweep
from runners.comparison.costs import Costs
from runners.comparison.curves import Curve, read_curve
from runners.comparison.earlier import check_report
from runners.comparison.fairness import check_same_test, check_same_training
from runners.comparison.pages import findings
from runners.comparison.report import chosen, report
from runners.comparison.statistics import estimate, is_apart, paired_difference
from runners.comparison.study import Finished, Measured
from runners.errors import TrainingError
from runners.run_folder import RunFolder, TrainResult
from runners.tasks import ACCURACY, METRICS, SUBOPTIMALITY
from runners.train import recipe_and_data

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
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert found.within(0, 1) == found
    assert not is_apart(found)


@given(SOME, st.floats(-1, 1))
def test_what_seeds_share_cancels_out(values: list[float], shift: float) -> None:
    found = paired_difference([value + shift for value in values], values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert (found.low, found.high) == (pytest.approx(shift, abs=1e-6),) * 2


def test_an_interval_ends_where_the_metric_does() -> None:
    found = estimate([0.7, 0.83])
    cut = found.within(0, 1)
    assert (cut.mean, cut.low, cut.high, cut.count) == (found.mean, 0, 1, 2)


def test_a_difference_is_apart_only_where_zero_is_outside() -> None:
    assert is_apart(estimate([0.1, 0.11, 0.12]))
    assert is_apart(estimate([-0.1, -0.11, -0.12]))
    assert not is_apart(estimate([-0.1, 0.11, 0.02]))
    assert not is_apart(estimate([0.01, 0.01]))  # a coincidence of finite test sets


def test_when_a_curve_comes_to_a_value() -> None:
    curve = Curve((0.2, 0.5, 0.4, 0.8), (1.0, 2.0, 3.0, 4.0), (10.0,) * 4)
    assert curve.area(4) == pytest.approx(0.475)
    assert curve.area(2) == pytest.approx(0.35)
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


def test_mistakes_of_swept_values_stand_where_they_were_typed() -> None:
    with pytest.raises(SpecError) as told:
        open_arms(study("momrev_vit_digits"), [parse_sweep("constants.gamma=0.5, a")])
    (one,) = told.value.diagnostics
    assert str(one).splitlines()[0] == "--sweep:1:22: error[E202] unknown name `a`"
    with pytest.raises(SpecError) as told:
        open_arms(study("momrev_vit_digits"), [parse_sweep("train.epoch=1,2")])
    (one,) = told.value.diagnostics
    assert str(one).startswith(
        "--sweep:1:7: error[E103] unknown key `epoch`\n    1 | train.epoch=1,2"
    )


@pytest.mark.parametrize("setting", ["train.seed=1", "train={seed: 1}"])
def test_seeds_are_the_studys_alone(setting: str) -> None:
    with pytest.raises(SpecError, match=r"--set:1:\d+: error\[E503\] a comparison has seeds"):
        open_arms(Study("s", (Entrant("a", zoo() / "rev_vit_digits.yaml", (setting,)),)))


def test_a_sweep_of_seeds() -> None:
    with pytest.raises(SpecError, match=r"--sweep:1:7: error\[E503\] a comparison has seeds"):
        open_arms(study("rev_vit_digits"), [parse_sweep("train.seed=1,2")])


def test_one_name_for_two() -> None:
    path = zoo() / "rev_vit_digits.yaml"
    with pytest.raises(SpecError, match=r"study file gives each a label.*specs: \{one: .*two: "):
        open_arms(Study("s", (Entrant("mine", path), Entrant("mine", path))))
    with pytest.raises(SpecError, match="each value of a sweep is given once"):
        open_arms(study("rev_vit_digits"), [parse_sweep("train.epochs=1,1")])


def test_the_baseline() -> None:
    named = study("rev_vit_digits", "vit_digits", baseline="vit_digits")
    assert baseline_of(named, open_arms(named)).label == "vit_digits"
    plain = study("rev_vit_digits", "vit_digits")
    assert baseline_of(plain, open_arms(plain)).label == "rev_vit_digits"
    odd = study("rev_vit_digits", baseline="rev_vit_digit")
    with pytest.raises(SpecError, match="did you mean `rev_vit_digits`"):
        baseline_of(odd, open_arms(odd))


# What is fair -------------------------------------------------------------------------------------


def arms_of(*settings: str, spec: str = "rev_vit_digits") -> tuple[Arm, ...]:
    path = zoo() / f"{spec}.yaml"
    return open_arms(Study("s", (Entrant("a", path), Entrant("b", path, settings))))


def test_what_differs_is_told_by_its_keys() -> None:
    settings = ("data.digits.validation=0.2", "data.digits.augment=[]", "train.epochs=2")
    assert check_same_training(arms_of(*settings, "data.digits.workers=0")) == [
        "b and a differ in data.digits.validation (0.2 and 0.1), data.digits.augment, "
        "train.epochs (2 and 40)"
    ]
    check_same_test(arms_of(*settings))


@pytest.mark.parametrize(
    ("spec", "settings", "told"),
    [
        ("rev_vit_digits", ["data={image_folder: mine}"], "data (image_folder and digits)"),
        ("lista", ["data.sparse_codes.noise=0.5"], "data.sparse_codes.noise (0.5 and 0"),
    ],
)
def test_other_test_sets_are_not_compared(spec: str, settings: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=r"error\[E602\] b and a are tested on different") as error:
        check_same_test(arms_of(*settings, spec=spec))
    assert told in str(error.value)


def test_one_folder_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entrants = [
        Entrant(label, zoo() / "rev_vit_digits.yaml", (f"data={{image_folder: {path}}}",))
        for label, path in (("a", "mine"), ("b", str(tmp_path / "mine")), ("c", "other"))
    ]
    arms = open_arms(Study("s", tuple(entrants)))
    check_same_test(arms[:2])
    with pytest.raises(SpecError, match=r"c and a are .*data\.image_folder\.path"):
        check_same_test(arms)


# The report that is there -------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    arms = open_arms(study("vit_digits"))
    (tmp_path / "train").mkdir()
    with pytest.raises(SpecError, match=r"E604.* is no study and holds train"):
        check_report(arms, 3, arms[0], tmp_path)
    (tmp_path / "runs").mkdir()  # a project may have runs of its own
    with pytest.raises(SpecError, match=r"E604.* is no study and holds train"):
        check_report(arms, 3, arms[0], tmp_path)
    (tmp_path / "train").rmdir()  # then it is a study that was stopped
    check_report(arms, 3, arms[0], tmp_path)


def test_a_mistake_in_a_study_is_told_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "archspec: 1\nstudy: mine\nset: [train.epochs=2, train.epoch=4]\nspecs: {a: vit_digits}\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError, match=r"mine\.yaml:3:23: error\[E103\] unknown key `epoch`"):
        open_arms(load_study(path))
    path.write_text(
        "archspec: 1\nstudy: mine\n"
        "specs:\n  a: {spec: momrev_vit_digits, set: [stages.trunk.constants.gama=0.5]}\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError, match=r"mine\.yaml:4:38: error\[E\d+\].*gama"):
        open_arms(load_study(path))


def test_a_report_is_replaced_only_by_one_that_has_all_of_it(tmp_path: Path) -> None:
    arms = open_arms(study("vit_digits", "rev_vit_digits"))
    check_report(arms, 3, arms[0], tmp_path)
    report = {"rows": [{"label": "vit_digits"}], "seeds": 3, "baseline": "vit_digits"}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    check_report(arms, 3, arms[0], tmp_path)
    check_report(arms[:1], 4, arms[0], tmp_path)
    for asked, seeds, baseline, lost in (
        (arms[1:], 3, arms[1], "vit_digits, the baseline vit_digits"),
        (arms, 2, arms[0], "3 seeds"),
        (arms, 3, arms[1], "the baseline vit_digits"),
    ):
        with pytest.raises(SpecError, match=rf"E604.* has what the new .*: {lost}\n"):
            check_report(asked, seeds, baseline, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1]}'])
def test_another_report_is_not_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    arms = open_arms(study("vit_digits"))
    with pytest.raises(SpecError, match="is not a comparison's report"):
        check_report(arms, 3, arms[0], tmp_path)


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

    found = load_study(path)
    arms = open_arms(found)
    assert check_same_training(arms) == []
    check_same_test(arms)
    sizes = [entry(arm.loaded).parameters for arm in arms]
    assert max(sizes) / min(sizes) < 1.01
    assert found.summary


@pytest.mark.parametrize("path", sorted((zoo() / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_study_is_no_spec(path: Path) -> None:
    with pytest.raises(SpecError) as told:
        load(path)
    (one,) = told.value.diagnostics
    assert (one.code, one.span and one.span.line) == ("E501", 1)
    assert one.help == f"`archspec compare {path}`, with no other spec, runs it"


def test_what_runs_say_of_themselves_is_reported() -> None:
    """Where they were made, whom validation chooses, and what is less than fair."""
    rates = ("train.learning_rate=1e-3", "train.batch=32")
    entrants = (
        Entrant("one", zoo() / "rev_vit_digits.yaml"),
        Entrant("two", zoo() / "vit_digits.yaml", ("train.epochs=3",)),
        Entrant("three", zoo() / "revnet_digits.yaml", rates),
    )
    whole = Study("s", entrants)
    arms = open_arms(whole)
    measured = [
        Measured(arm, recipe_and_data(arm.loaded)[0], NO_COSTS, runs_of(best, place), {})
        for arm, best, place in zip(arms, (0.8, 0.9, 0.7), ("a", "a", "b"), strict=True)
    ]
    found = report(whole, arms[0], measured, "archspec compare")
    assert found.machine == {"device": "cpu", "platform": "a, b"}
    assert chosen(found) == "By validation, which is there to choose by, two is the best."
    assert found.epochs == 2
    assert [row.area.mean for row in found.rows if row.area] == pytest.approx([0.4, 0.45, 0.35])
    said = list(findings(found))
    assert any("several machines" in sentence for sentence in said)
    assert any("hree and one differ in" in sentence for sentence in said)
    assert any("train.batch (32 and " in sentence for sentence in said)


NO_COSTS = Costs(parameters=1, macs=None, training=None, testing=None)


def runs_of(best: float, place: str) -> tuple[Finished, ...]:
    result = TrainResult("accuracy", best, 1.0, best, 2, 2, 1.0, 1, "cpu", "run")
    curve = Curve((0.0, best, best)[: 3 if place == "a" else 2], (1.0, 2.0, 3.0), (1.0,) * 3)
    return (Finished(0, result, curve, {"platform": place}),)


def test_a_curve_that_lacks_epochs_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"epoch": 1}\n{"epoch": 3}\n')
    with pytest.raises(TrainingError, match="lacks epochs"):
        read_curve(folder, METRICS["accuracy"])
