"""The tables of a profile."""

from __future__ import annotations

from collections.abc import Callable

from archspec.memory_size import size_text
from runners.comparison.tables import Table
from runners.profile.cuda_rules import CUBLAS_WORKSPACE, EARLIER_WORKSPACE
from runners.profile.ledger import Shares, Use
from runners.profile.report import Report, Row

MEBI = 2**20
NONE = "–"
SHARES = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "streams": "streams",
    "information": "side info",
    "saved": "saved",
    "workspace": "workspace",
}
"""The columns of what a peak is spent on."""


def tables(report: Report) -> tuple[Table, ...]:
    """Memory; time, where it was measured; what fits, where that was asked."""
    found = [_memory(report)]
    if any(row.times for row in report.rows):
        found.append(_time(report))
    if report.budget is not None:
        found.append(_fit(report))
    return tuple(found)


def _names(row: Row) -> tuple[str, ...]:
    return (row.spec, str(row.depth), row.schedule, f"{row.batch:,}")


NAMES = ("spec", "layers", "activations", "batch")


def _memory(report: Report) -> Table:
    both = any(row.measured and row.predicted for row in report.rows)
    shown = [n for n in SHARES if any(_share(row, n) for row in report.rows)]
    header = [*NAMES, "peak", *(["predicted"] if both else []), "a sample", "between steps"]
    rows = []
    for row in report.rows:
        use = row.use
        cells = [_peak(use), *([_peak(row.predicted)] if both else []), _small(row.per_sample)]
        cells.append(_mebi(use.steady if use else None))
        rows.append((*_names(row), *cells, *(_mebi(_share(row, n)) for n in shown)))
    return Table(
        "Memory of a training step, MiB",
        (*header, *(SHARES[name] for name in shown)),
        tuple(rows),
        _told(report),
    )


def _peak(use: Use | None) -> str:
    return _mebi(use.peak if use else None)


def _told(report: Report) -> str:
    how = "counted by the allocator" if report.device.startswith("cuda") else "of live tensors"
    if not report.is_there:
        how = (
            f"predicted for {report.device}, which this machine has not; times are not. It is a "
            f"Hopper GPU, where cuBLAS takes {CUBLAS_WORKSPACE / 2**20:.0f} MiB of workspace; on "
            f"earlier ones {EARLIER_WORKSPACE / 2**20:.0f}"
        )
    notes = [f"{row.spec}, {row.schedule}: {row.note}." for row in report.rows if row.note]
    parts = "What follows `between steps` are the parts of the peak."
    return " ".join([f"Bytes {how}. {parts}", *notes])


def _share(row: Row, name: str) -> int:
    shares = row.use.shares if row.use else Shares()
    found: int = getattr(shares, name)
    return found


def _time(report: Report) -> Table:
    header = (*NAMES, "forward", "replay", "backward", "optimizer", "step", "ratio", "samples/s")
    rows = []
    for row in report.rows:
        taken = row.times
        if taken is None:
            continue
        replay = row.replay or 0.0
        cells = [
            _milli(taken.forward),
            NONE if row.replay is None else _milli(replay),
            _milli(taken.backward - replay),
            _milli(taken.optimizer),
            _milli(taken.step),
            f"{taken.ratio:.2f}",
            f"{row.samples_per_second:,.0f}",
        ]
        rows.append((*_names(row), *cells))
    note = (
        "Medians of steps that the strategies took in turn. Replay is what the backward pass takes "
        "beyond that of stored activations; the ratio is that of steps to the first strategy's."
    )
    return Table("Time of a training step, ms", header, tuple(rows), note)


def _fit(report: Report) -> Table:
    assert report.budget is not None
    rows = [
        (
            row.spec,
            str(row.depth),
            row.schedule,
            f"{row.largest:,}",
            _text(row.largest_per_second, "{:,.0f}".format),
        )
        for row in report.rows
        if row.largest is not None
    ]
    assert report.fit is not None
    context = size_text(report.fit - report.budget)
    left = f", of which {context} are left to CUDA" if report.fit > report.budget else ""
    title = f"The largest batch within {size_text(report.fit)}{left}"
    header = ("spec", "layers", "activations", "batch", "samples/s")
    note = "Of a step without accumulation, as predicted."
    if any(row.largest == 0 for row in report.rows):
        note += " 0: not even one sample fits."
    return Table(title, header, tuple(rows), note)


def _text(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None else form(value)


def _mebi(size: int | None) -> str:
    return _text(size, lambda value: f"{value / MEBI:,.1f}")


def _small(size: float | None) -> str:
    return _text(size, lambda value: f"{value / MEBI:,.3f}")


def _milli(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"
