"""The plots of a profile, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby

from matplotlib.axes import Axes

from runners.comparison.plots import MARKERS, svg
from runners.profile.report import Report, Row

MEBI = 2**20


BY_DEPTH, BY_BATCH, BY_TIME = TITLES = (
    "Memory against depth",
    "Memory against batch",
    "Time against memory",
)


def plots(report: Report) -> dict[str, str]:
    """Titles, and the SVG of each that there is something to draw for."""
    drawn: dict[str, Callable[[Axes], None]] = {}
    used = [row for row in report.rows if row.use]
    if len({row.depth for row in used}) > len({row.spec for row in used}):
        drawn[BY_DEPTH] = lambda axes: _by_depth(axes, report)
    if report.by_batch:
        drawn[BY_BATCH] = lambda axes: _lines(axes, report.by_batch, "batch")
    if any(row.times for row in report.rows):
        drawn[BY_TIME] = lambda axes: _time(axes, report)
    return {title: svg(title, draw) for title, draw in drawn.items()}


def _by_depth(axes: Axes, report: Report) -> None:
    def label(row: Row) -> str:
        return f"{row.spec}, {row.schedule}"

    found = {
        name: [(row.depth, row.use.peak) for row in rows if row.use]
        for name, rows in groupby(sorted(report.rows, key=label), key=label)
    }
    _lines(axes, found, "layers")


def _lines(axes: Axes, found: Mapping[str, list[tuple[int, int]]], across: str) -> None:
    for index, (name, points) in enumerate((n, p) for n, p in found.items() if p):
        places, peaks = zip(*sorted(points), strict=True)
        style = f"-{MARKERS[index % len(MARKERS)]}"
        axes.plot(places, [peak / MEBI for peak in peaks], style, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel("peak of a training step, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _time(axes: Axes, report: Report) -> None:
    for index, row in enumerate(row for row in report.rows if row.times and row.use):
        assert row.times is not None
        assert row.use is not None
        marker = MARKERS[index % len(MARKERS)]
        label = f"{row.spec}, {row.depth} layers, {row.schedule}"
        axes.plot([row.use.peak / MEBI], [1000 * row.times.step], marker, label=label)
    axes.set_xlabel("peak of a training step, MiB")
    axes.set_ylabel("a training step, ms")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
