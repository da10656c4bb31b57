"""The plots of a report, as SVG."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from runners.comparison.report import Report, Row
from runners.comparison.statistics import estimate
from runners.tasks import METRICS

MEBI = 2**20
COLOURS = colormaps["tab10"]
MARKERS = "osD^vPX*<>"


def plots(report: Report) -> dict[str, str]:
    """Titles, and the SVG of each."""
    peak = f"peak memory of a training step, MiB (batch {_batches(report)})"
    drawn: dict[str, Callable[[Axes], None]] = {
        "Learning curves": lambda axes: _curves(axes, report, against_seconds=False),
        "Learning curves over time": lambda axes: _curves(axes, report, against_seconds=True),
        "Test against memory": lambda axes: _scatter(axes, report, _peak, peak),
        "Test against time": lambda axes: _scatter(axes, report, _minutes, "minutes of a run"),
    }
    return {title: svg(title, draw) for title, draw in drawn.items()}


def _batches(report: Report) -> str:
    return ", ".join(map(str, sorted({row.batch for row in report.rows})))


def svg(title: str, draw: Callable[[Axes], None]) -> str:
    """One plot."""
    with rc_context(
        {
            "svg.fonttype": "none",  # texts stay texts
            "svg.hashsalt": title,  # names inside differ between the plots of one page
            "text.parse_math": False,  # a name of the user's is no formula
        }
    ):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        draw(axes)
        axes.grid(alpha=0.3)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _curves(axes: Axes, report: Report, *, against_seconds: bool) -> None:
    """The mean over seeds, with its confidence interval as a band."""
    for index, row in enumerate(report.rows):
        epochs = min((len(run.validation) for run in row.runs), default=0)
        if not epochs:
            continue
        seen = [estimate([run.validation[e] for run in row.runs]) for e in range(epochs)]
        times = [statistics.fmean(run.seconds[e] for run in row.runs) for e in range(epochs)]
        places = times if against_seconds else list(range(1, epochs + 1))
        colour = COLOURS(index % 10)
        style = "-" if index < 10 else "--"
        axes.plot(places, [e.mean for e in seen], style, color=colour, label=_in_legend(row.label))
        low = [e.mean if e.low is None else e.low for e in seen]
        high = [e.mean if e.high is None else e.high for e in seen]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("seconds, validation counted" if against_seconds else "epochs")
    if not against_seconds:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"validation {report.metric}")
    _finish(axes, report)


def _peak(row: Row) -> float | None:
    if row.gpu_peak is not None:
        return row.gpu_peak / MEBI
    return None if row.costs.training is None else row.costs.training.peak / MEBI


def _minutes(row: Row) -> float | None:
    return None if row.seconds is None else row.seconds / 60


def _scatter(axes: Axes, report: Report, cost: Callable[[Row], float | None], label: str) -> None:
    for index, row in enumerate(report.rows):
        place = cost(row)
        if place is None or row.test is None:
            continue
        mean, low, high = row.test.mean, row.test.low, row.test.high
        spread = None if low is None or high is None else [[mean - low], [high - mean]]
        axes.errorbar(
            [place],
            [mean],
            yerr=spread,
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS(index % 10),
            capsize=3,
            label=_in_legend(row.label),
        )
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {report.metric}")
    _finish(axes, report)


def _in_legend(label: str) -> str:
    """Matplotlib hides those that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _finish(axes: Axes, report: Report) -> None:
    if METRICS[report.metric].is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))  # an interval of few seeds may reach beyond
    else:
        axes.set_yscale("log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


__all__: Sequence[str] = ["MARKERS", "plots", "svg"]
