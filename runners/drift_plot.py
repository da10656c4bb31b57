"""A plot of the drift of stages by depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compiler.drift import DESTROYED, Drift
from compiler.growth import FLOAT32_STEP, Curve
from runners.files import replacing

LOWEST, HIGHEST = FLOAT32_STEP / 100, 100.0
"""Of the axis of errors: past its ends there is nothing to tell."""


def plot(drifts: Sequence[Drift], path: Path, title: str) -> None:
    """Write a plot, one panel for each stage, to a .png or .svg file, whole or not at all. Raises
    OSError."""
    figure = Figure(figsize=(6.4 * len(drifts), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, drift in zip(figure.subplots(1, len(drifts), squeeze=False)[0], drifts, strict=True):
        _panel(axes, drift)
    kind = path.suffix.removeprefix(".")
    # The same file every time, without the date.
    with replacing(path) as partial, rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


def _panel(axes: Axes, drift: Drift) -> None:
    depths = range(1, drift.depth + 1)

    def draw(curve: Curve | None, label: str, style: str, colour: str) -> None:
        if curve is not None:
            # Not-a-number compares false: what overflows is drawn at the top.
            inside = [max(error, LOWEST) if error < HIGHEST else HIGHEST for error in curve]
            mark = "." if drift.depth == 1 else ""
            axes.plot(depths, inside, style, marker=mark, color=colour, label=label)

    draw(drift.float32, "float32, measured", "-", "tab:blue")
    draw(drift.predicted, "float32, predicted with gain", "--", "tab:blue")
    draw(drift.linear, "float32, predicted, linear part", ":", "tab:blue")
    draw(drift.bfloat16, "bfloat16, measured", "-", "tab:orange")
    draw(drift.predicted_bfloat16, "bfloat16, predicted with gain", "--", "tab:orange")
    draw(drift.exact, "exact, measured", "-", "tab:green")
    axes.axhline(DESTROYED, color="grey", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST / 2, HIGHEST * 2)
    axes.set_title(drift.name)
    axes.set_xlabel("layers undone")
    axes.set_ylabel("relative error of the streams")
    axes.legend(fontsize="small")
