"""Plots of an evaluation, as SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from runners.classification import Classified
from runners.evaluation import Evaluation
from runners.files import replacing

MOST_NAMED = 30
"""So many classes have their names on the axes."""
MOST_COUNTED = 20
"""So many have their counts written in."""


def plot_confusion(evaluation: Evaluation, path: Path) -> None:
    """Write the confusion matrix to an .svg file, whole or not at all; colours are shares of each
    row. Raises OSError."""
    classes = evaluation.classes
    assert classes is not None
    names = evaluation.class_names

    def draw(axes: Axes) -> None:
        counts = np.array(classes.confusion)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        if len(names) <= MOST_NAMED:
            turned = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(len(names)), names, rotation=turned)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= MOST_COUNTED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, str(count), ha="center", va="center", color=colour, size=8
                    )

    _write(path, f"{_title(evaluation)}: confusion", (6.4, 6.0), draw)


def plot_reliability(evaluation: Evaluation, path: Path) -> None:
    """Write accuracy by confidence, and how many samples have which confidence, to an .svg file.
    Raises OSError."""
    classes = evaluation.classes
    assert classes is not None

    def draw(axes: Axes) -> None:
        _reliability(axes, classes)

    _write(path, f"{_title(evaluation)}: reliability", (6.0, 4.6), draw)


def _reliability(axes: Axes, classes: Classified) -> None:
    lows = [b.low for b in classes.bins]
    widths = [b.high - b.low for b in classes.bins]
    samples = sum(b.samples for b in classes.bins)
    axes.bar(
        lows,
        [b.samples / samples for b in classes.bins],
        widths,
        align="edge",
        color="lightgrey",
        label="share of the samples",
    )
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="calibrated")
    filled = [(b.confidence, b.accuracy) for b in classes.bins if b.samples]
    axes.plot(*zip(*filled, strict=True), "o-", color="tab:blue", label="accuracy")
    axes.set_xlabel(f"confidence (expected calibration error {classes.calibration_error:.2%})")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _title(evaluation: Evaluation) -> str:
    subject = evaluation.subject
    return f"{subject.name}, {subject.split} split"


def _write(path: Path, title: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> None:
    # The same file every time, without the date; texts stay texts.
    with (
        replacing(path) as partial,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": title}),
    ):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title, fontsize="medium")
        draw(axes)
        figure.savefig(partial, format="svg", metadata={"Date": None})
