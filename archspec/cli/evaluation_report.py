"""What `archspec evaluate` prints for eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from archspec.cli.report import PIPE_WIDTH

if TYPE_CHECKING:
    from runners.classification import Classified
    from runners.evaluation import Evaluation
    from runners.generation_evaluation import GenerationEvaluation
    from runners.inversion import Inversion

MOST_CLASSES = 20
"""So many are told; of more, those that fare worst."""


def print_evaluation(found: Evaluation, to_stderr: bool) -> None:
    """Print what was measured, and of a classifier how each class fares."""
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    subject, score = found.subject, found.score
    epoch = "" if subject.epoch is None else f" of epoch {subject.epoch}"
    title = f"{subject.name}: {subject.weights}{epoch}, {score.samples:,} {subject.split} samples"
    console.print(Text(title, style="bold"))
    if found.unreadable:
        console.print(Text(f"warning: {found.unreadable} files cannot be read", style="yellow"))
    console.print(_values(found))
    if found.generation is not None and found.generation.fidelity is not None:
        console.print(_fidelity(found.generation))
    if found.inversion is not None:
        console.print(_inversion(found.inversion))
    if found.classes is not None:
        console.print(_classes(found.classes, found.class_names))


def _values(found: Evaluation) -> Table:
    score, means = found.score, found.means
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(found.metric.name, found.metric.text(score.measured), "")
    if found.classes is not None:
        table.add_row(f"top {found.classes.k}", f"{found.classes.top_k:.2%}", "")
    if found.generation is None:
        table.add_row("loss", f"{score.loss:.4g}", "")
    elif found.generation.gaussian_bits is not None:
        bits = found.metric.text(found.generation.gaussian_bits)
        table.add_row("", bits, "by a Gaussian with a full covariance, of the training images")
    if found.classes is not None:
        error = f"{found.classes.calibration_error:.2%}"
        table.add_row("calibration error", error, f"over {len(found.classes.bins)} bins")
        table.add_row("Brier score", f"{found.classes.brier:.4f}", "from 0 to 2")
    how = f"in batches of {means.batch} on {means.device}, {means.precision}"
    table.add_row("samples a second", f"{score.samples_per_second:,.0f}", how)
    table.add_row(
        "",
        f"{found.network_samples_per_second:,.0f}",
        f"without the {score.waited / score.seconds:.0%} of the time that data took",
    )
    return table


def _fidelity(found: GenerationEvaluation) -> Table:
    """Samples beside data, and a Gaussian's beside them."""
    from runners.likeness import measure_names

    rows = [("samples", found.fidelity), ("a Gaussian's", found.gaussian_fidelity)]
    shown = [(name, fidelity) for name, fidelity in rows if fidelity is not None]
    first = shown[0][1]
    title = f"{first.samples:,} samples, temperature {first.temperature:g}"
    if first.solving is not None:
        title += f", {first.solving.steps} steps of {first.solving.solver}"
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(title)
    for name in (*measure_names(first.features), "precision", "recall"):
        table.add_column(Text(name), justify="right")
    for name, fidelity in shown:
        table.add_row(
            name,
            f"{fidelity.inception_score:.3f}",
            f"{fidelity.frechet_distance:.4g}",
            f"{fidelity.kernel_distance:.4g}",
            f"{fidelity.precision:.3f}",
            f"{fidelity.recall:.3f}",
        )
    return table


def _inversion(found: Inversion) -> Table:
    """What came back of images."""
    from runners.inversion import cells, header

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(f"{found.images} images through {found.stage} and back", no_wrap=True)
    for name in header(found):
        table.add_column(Text(name), justify="right")
    for row in found.rows:
        table.add_row(*cells(row))
    return table


def _classes(classes: Classified, names: tuple[str, ...]) -> Table:
    order = sorted(range(len(names)), key=lambda c: _worst_first(classes.per_class[c]))
    shown = sorted(order[:MOST_CLASSES]) if len(names) <= MOST_CLASSES else order[:MOST_CLASSES]
    title = "class" if len(names) == len(shown) else f"worst {len(shown)} of {len(names)} classes"
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("samples", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("else most often taken for")
    for number in shown:
        share = classes.per_class[number]
        table.add_row(
            Text(names[number]),
            f"{sum(classes.confusion[number]):,}",
            "–" if share is None else f"{share:.2%}",
            Text(_mistaken_for(classes.confusion[number], number, names)),
        )
    return table


def _worst_first(share: float | None) -> float:
    return 2.0 if share is None else share


def _mistaken_for(row: tuple[int, ...], number: int, names: tuple[str, ...]) -> str:
    others = {other: count for other, count in enumerate(row) if other != number and count}
    if not others:
        return ""
    most = max(others, key=lambda other: others[other])
    return f"{names[most]} ({others[most]})"
