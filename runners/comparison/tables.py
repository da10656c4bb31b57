"""The tables of a report, as texts in rows: Markdown and HTML write the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runners.comparison.report import Report, Row
from runners.comparison.statistics import Estimate
from runners.inversion import cells, header
from runners.tasks import METRICS

MEBI = 2**20
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with what it shows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(report: Report) -> tuple[Table, ...]:
    """All tables of a report."""
    told = (_results(report), _speed(report), _costs(report), _inversions(report))
    return (*(table for table in told if table.rows), _networks(report))


def _networks(report: Report) -> Table:
    return Table(
        "Networks",
        ("network", "spec", "data", "settings"),
        tuple(
            (row.label, row.spec, row.data, ", ".join(row.settings) or NONE) for row in report.rows
        ),
    )


def _results(report: Report) -> Table:
    metric = METRICS[report.metric]

    def difference(found: Estimate | None) -> str:
        return _interval(found, metric.difference_text, metric.unit)

    return Table(
        f"Test {metric.name}",
        (
            "network",
            "runs",
            "validation",
            f"test {metric.name}",
            f"beside {report.baseline}",
            "learning curve",
            f"beside {report.baseline}",
        ),
        tuple(
            (
                row.label,
                f"{len(row.runs)}/{report.seeds}",
                _interval(row.validation, metric.text),
                _interval(row.test, metric.text),
                difference(row.difference),
                _interval(row.area, metric.text),
                difference(row.area_difference),
            )
            for row in report.rows
        ),
        f"Means over seeds, with {report.confidence:.0%} intervals of Student's t. Differences are "
        "paired: seed by seed, so that what runs of one seed share cancels out. The learning curve "
        f"is the mean validation {metric.name} over the first {report.epochs} epochs, which all "
        "runs have. Validation is of the best epoch." + _of_two_seeds(report),
    )


def _of_two_seeds(report: Report) -> str:
    """What is to be known of so wide an interval."""
    if not any(row.test and row.test.count == 2 for row in report.rows):
        return ""
    return (
        " An interval of two seeds is very wide, 12.7 standard errors to each side, and says next "
        "to nothing: of three it is 4.3, of five 2.8. Intervals end where the metric does."
    )


def _speed(report: Report) -> Table:
    metric = METRICS[report.metric]
    targets = report.rows[0].targets if report.rows else ()
    names = [f"to {metric.text(target.value)}" for target in targets]
    return Table(
        "Time",
        ("network", "samples/s", "a run", *names),
        tuple(
            (
                row.label,
                NONE if row.samples_per_second is None else f"{row.samples_per_second:,.0f}",
                _duration(row.seconds),
                *(
                    f"{_epochs(target.epochs)}, {_duration(target.seconds)}"
                    + ("" if target.reached == len(row.runs) else f" (of {target.reached})")
                    if target.epochs is not None
                    else NONE
                    for target in row.targets
                ),
            )
            for row in report.rows
        ),
        f"When the validation {metric.name} first came to a value: means over the runs that did.",
    )


def _costs(report: Report) -> Table:
    def usage(row: Row, which: Callable[[Row], tuple[int, int] | None]) -> str:
        found = which(row)
        return NONE if found is None else f"{found[0] / MEBI:,.1f} / {found[1] / MEBI:,.1f}"

    def training(row: Row) -> tuple[int, int] | None:
        found = row.costs.training
        return None if found is None else (found.peak, found.average)

    def testing(row: Row) -> tuple[int, int] | None:
        found = row.costs.testing
        return None if found is None else (found.peak, found.average)

    measured = any(row.gpu_peak for row in report.rows)
    return Table(
        "Costs",
        (
            "network",
            "parameters",
            "MACs",
            "batch",
            "training, MiB",
            "testing, MiB",
            *(["GPU peak, MiB"] if measured else []),
        ),
        tuple(
            (
                row.label,
                f"{row.costs.parameters:,}",
                NONE if row.costs.macs is None else f"{row.costs.macs / 1e6:,.1f} M",
                str(row.batch),
                usage(row, training),
                usage(row, testing),
                *([f"{(row.gpu_peak or 0) / MEBI:,.1f}"] if measured else []),
            )
            for row in report.rows
        ),
        "Memory is that of live tensors in a step of the recipe's batch, the most and the mean "
        "over operations; in training with weights, gradients and the optimizer's state.",
    )


def _inversions(report: Report) -> Table:
    """Of the networks that have an inverse."""
    found = [(row.label, row.inversion) for row in report.rows if row.inversion is not None]
    names = header(found[0][1]) if found else ()
    images = found[0][1].images if found else 0
    return Table(
        "There and back",
        ("network", "stage", "arithmetic", *names),
        tuple((label, one.stage, *cells(row)) for label, one in found for row in one.rows),
        f"{images} test images through layers of the first stage, trained with the first seed, and "
        "back by the derived inverse: the norm of the streams' error over their norm; and of the "
        "images, from 0 to 1, the peak signal-to-noise ratio, the largest error, and the share of "
        "pixels of the same level. Whatever a network was trained in, its weights are tried in "
        "each arithmetic.",
    )


def _interval(found: Estimate | None, text: Callable[[float], str], unit: str = "") -> str:
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return f"{text(found.mean)}{unit}"
    return f"{text(found.mean)}{unit} ({text(found.low)} to {text(found.high)})"


def _epochs(mean: float) -> str:
    return "1 epoch" if mean == 1 else f"{mean:.1f} epochs"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
