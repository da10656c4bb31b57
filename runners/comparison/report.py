"""The report of a study as one typed value: all that its tables and plots show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from archspec.citations import family_of
from archspec.diagnostics import Diagnostic, SpecError
from archspec.study import Study
from runners.comparison.arms import Arm
from runners.comparison.costs import Costs
from runners.comparison.fairness import check_same_training
from runners.comparison.statistics import (
    CONFIDENCE,
    Estimate,
    estimate,
    is_apart,
    paired_difference,
)
from runners.comparison.study import Finished, Measured
from runners.inversion import Inversion
from runners.tasks import ACCURACY, METRICS, Metric

SHARES = (0.8, 0.9, 0.95)
"""Of the best network's validation metric: the targets where a study names none."""


@dataclass(frozen=True)
class Target:
    """How soon a network comes to some value of the validation metric. Means are over the runs
    that come to it."""

    value: float
    reached: int
    """By so many runs."""
    epochs: float | None
    seconds: float | None


@dataclass(frozen=True)
class Run:
    """One run, as it is plotted."""

    seed: int
    test: float
    validation: tuple[float, ...]
    """After each epoch."""
    seconds: tuple[float, ...]
    """That had passed by then."""


@dataclass(frozen=True)
class Row:
    """One network. Values of the metric are shares, bytes bytes, times seconds."""

    label: str
    spec: str
    family: str | None
    settings: tuple[str, ...]
    data: str
    """The data set."""
    note: str
    costs: Costs
    batch: int
    runs: tuple[Run, ...]
    failures: dict[int, str]
    validation: Estimate | None
    """Of the best epoch: what hyper-parameters are chosen by."""
    test: Estimate | None
    """None where no run came to its end."""
    area: Estimate | None
    """Under the learning curve: the mean of the validation metric over epochs."""
    difference: Estimate | None
    """Of the test metric from the baseline's, seed by seed; None for the baseline."""
    area_difference: Estimate | None
    targets: tuple[Target, ...]
    seconds: float | None
    """Of a whole run."""
    samples_per_second: float | None
    gpu_peak: int | None
    """Bytes that the GPU's allocator had given out at once; None where no GPU was used."""
    inversion: Inversion | None = None
    """Of the network trained with the first seed, where its first stage has an inverse."""


@dataclass(frozen=True)
class Report:
    """A study that has been run."""

    name: str
    summary: str
    command: str
    metric: str
    seeds: int
    baseline: str
    confidence: float
    rows: tuple[Row, ...]
    machine: dict[str, str]
    cautions: tuple[str, ...] = ()
    """What makes the comparison less than fair."""
    epochs: int = 0
    """That all runs have: learning curves are compared over these."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def report(
    study: Study,
    baseline: Arm,
    measured: Sequence[Measured],
    command: str,
    inversions: Mapping[str, Inversion] = MappingProxyType({}),
) -> Report:
    """Compare what has been run. `command` is how it was called; `inversions` are by label."""
    metric = _metric(measured)
    against = next(one for one in measured if one.arm == baseline)
    targets = study.targets or _targets(measured, metric)
    runs = [run for one in measured for run in one.runs]
    epochs = min((len(run.curve.values) for run in runs), default=0)
    return Report(
        name=study.name,
        summary=study.summary,
        command=command,
        metric=metric.name,
        seeds=study.seeds,
        baseline=baseline.label,
        confidence=CONFIDENCE,
        rows=tuple(
            replace(
                _row(one, against, targets, metric, epochs),
                inversion=inversions.get(one.arm.label),
            )
            for one in measured
        ),
        machine=machine(runs),
        cautions=(*check_same_training([one.arm for one in measured]), *_of_machines(runs)),
        epochs=epochs,
    )


def _metric(measured: Sequence[Measured]) -> Metric:
    """That of all the runs. Raises `SpecError` where they are measured by several."""
    names = {run.result.metric for one in measured for run in one.runs}
    if len(names) > 1:
        message = f"these networks are measured by different things: {', '.join(sorted(names))}"
        raise SpecError([Diagnostic("E602", message)])
    return METRICS[names.pop()] if names else ACCURACY


def _targets(measured: Sequence[Measured], metric: Metric) -> tuple[float, ...]:
    """Shares of the best network's validation metric."""
    means = [
        statistics.fmean(run.result.validation_metric for run in one.runs)
        for one in measured
        if one.runs
    ]
    if not means or not metric.higher_is_better:
        return ()
    return tuple(round(share * max(means), 2) for share in SHARES)


def _row(
    one: Measured, against: Measured, targets: Sequence[float], metric: Metric, epochs: int
) -> Row:
    arm, runs = one.arm, one.runs
    tests = {run.seed: run.result.test_metric for run in runs}
    areas = {run.seed: run.curve.area(epochs) for run in runs}
    most = 1.0 if metric.is_share else math.inf
    return Row(
        label=arm.label,
        spec=arm.loaded.spec.name,
        family=family_of(arm.loaded.spec),
        settings=arm.settings,
        data=arm.loaded.spec.data.kind if arm.loaded.spec.data else "",
        note=arm.note,
        costs=one.costs,
        batch=one.recipe.batch,
        runs=tuple(
            Run(run.seed, run.result.test_metric, run.curve.values, run.curve.seconds)
            for run in runs
        ),
        failures=dict(one.failures),
        validation=_estimate({run.seed: run.result.validation_metric for run in runs}, most),
        test=_estimate(tests, most),
        area=_estimate(areas, most),
        difference=_difference(
            tests, {r.seed: r.result.test_metric for r in against.runs}, one, against, most
        ),
        area_difference=_difference(
            areas, {r.seed: r.curve.area(epochs) for r in against.runs}, one, against, most
        ),
        targets=tuple(_target(value, runs, metric) for value in targets),
        seconds=_mean([run.result.seconds for run in runs]),
        samples_per_second=_mean([statistics.median(run.curve.speeds) for run in runs]),
        gpu_peak=max((run.curve.gpu_peak or 0 for run in runs), default=0) or None,
    )


def _estimate(values: Mapping[int, float], most: float) -> Estimate | None:
    return estimate(list(values.values())).within(0.0, most) if values else None


def _difference(
    values: Mapping[int, float],
    others: Mapping[int, float],
    one: Measured,
    against: Measured,
    most: float,
) -> Estimate | None:
    """Over the seeds that both have ended with. No metric is below 0, or above `most`."""
    both = sorted(values.keys() & others.keys())
    if one is against or not both:
        return None
    change = paired_difference([values[seed] for seed in both], [others[seed] for seed in both])
    return change.within(-most, most)


def _target(value: float, runs: Sequence[Finished], metric: Metric) -> Target:
    reached = [(run, epoch) for run in runs if (epoch := run.curve.reaches(value, metric))]
    seconds = [run.curve.seconds[epoch - 1] for run, epoch in reached]
    return Target(value, len(reached), _mean([epoch for _, epoch in reached]), _mean(seconds))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def machine(runs: Sequence[Finished]) -> dict[str, str]:
    """Where runs were made, as each of them says."""
    said = [{"device": run.result.device, **run.made_on} for run in runs]
    names = dict.fromkeys(name for one in said for name in one)
    return {name: ", ".join(sorted({one[name] for one in said if name in one})) for name in names}


def _of_machines(runs: Sequence[Finished]) -> list[str]:
    """What is to be known where runs were made on several."""
    places = {(run.result.device, *run.made_on.values()) for run in runs}
    if len(places) < 2:
        return []
    return ["runs were made on several machines or versions: their times do not compare"]


def chosen(report: Report) -> str:
    """The network that validation chooses among several; nothing where there is no choice."""
    metric = METRICS[report.metric]
    best = None
    for row in report.rows:
        if row.validation and (
            best is None
            or best.validation is None
            or metric.better(row.validation.mean, best.validation.mean)
        ):
            best = row
    if best is None or sum(row.validation is not None for row in report.rows) < 2:
        return ""
    return f"By validation, which is there to choose by, {best.label} is the best."


def finding(row: Row, report: Report) -> str:
    """What may be said of a network beside the baseline, in one sentence."""
    metric = METRICS[report.metric]
    if row.test is None:
        return f"{row.label}: no run came to its end."
    if row.difference is None:
        other = "the baseline" if row.label == report.baseline else "nothing to compare with"
        return f"{row.label}: test {metric.name} {metric.text(row.test.mean)}, {other}."
    change = row.difference
    points = f"{metric.difference_text(change.mean)}{metric.unit}"
    said = f"{row.label}: {points} beside {report.baseline}"
    if change.low is None or change.high is None:
        return f"{said}, from one seed, which says nothing of chance."
    interval = f"{metric.difference_text(change.low)} to {metric.difference_text(change.high)}"
    verdict = "a difference" if is_apart(change) else "no difference shown"
    return f"{said} ({report.confidence:.0%} interval {interval}, {change.count} seeds): {verdict}."
