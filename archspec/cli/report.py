"""What `archspec build` prints for eyes."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from compiler.summary import ExactSummary, StageSummary, Summary

PIPE_WIDTH = 10_000
"""Of lines that no terminal shows: equations are not cut."""


def print_summary(summary: Summary, to_stderr: bool) -> None:
    """Print the stages, each update beside its inverse, and the verification."""
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(Text(f"{summary.name}: {summary.input} → {summary.output}", style="bold"))
    console.print(_stage_table(summary))
    for stage in summary.stages:
        console.print(_program_table(stage))
        if stage.exact is not None:
            _print_exact(console, stage.exact, stage.backward == "reversible")
        for warning in (stage.warning or "").splitlines():
            console.print(Text(f"warning: {warning}", style="yellow"))
    macs, norms = summary.macs, summary.norm_operations
    together = None if macs is None or norms is None else macs + norms
    console.print(
        f"{summary.parameters:,} parameters, {giga(macs)} MACs an input "
        f"({giga(together)} with norms at 5 an element)"
    )
    kept, stored = summary.kept_bytes, summary.kept_bytes_stored
    saved = "–" if kept is None or stored is None else f"{stored / max(1, kept):.1f}"
    console.print(
        f"activations kept for backward: {mega(kept)} an input; stored, {mega(stored)} "
        f"({saved} times)"
    )
    if summary.verification is None:
        console.print("not verified")
    else:
        _print_verification(console, summary.verification)


def _stage_table(summary: Summary) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("stage", "shape", "streams"):
        table.add_column(name, no_wrap=True)
    for name in ("depth", "parameters", "MACs", "growth", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("stem", "", "", "", f"{summary.stem_parameters:,}", "", "", "")
    for stage in summary.stages:
        growth, bits = stage.inverse_growth, stage.bits_per_element
        table.add_row(
            stage.name,
            stage.shape,
            " ".join(stage.streams),
            str(stage.depth),
            f"{stage.parameters:,}",
            giga(stage.macs),
            "–" if growth is None else f"{growth:.3g}",
            "–" if bits is None else f"{bits:.3g}",
        )
    table.add_row("head", "", "", "", f"{summary.head_parameters:,}", "", "", "")
    return table


def _program_table(stage: StageSummary) -> Table:
    """The update, and the inverse: beside each line the one that undoes it, from the bottom up;
    with temporaries, which the inverse computes elsewhere, in the order in which it runs."""
    table = Table(box=None, header_style="dim", pad_edge=False, title_justify="left")
    strategy = ", ".join(filter(None, (stage.backward, stage.schedule)))
    table.add_column(f"{stage.name} ({strategy}): update ↓", no_wrap=True)
    inverse = list(stage.inverse or [])
    aligned = len(inverse) == len(stage.update) and not any(":=" in line for line in inverse)
    arrow = "↑" if aligned else "↓"
    table.add_column(f"derived inverse {arrow}" if inverse else "no inverse", no_wrap=True)
    if aligned:
        inverse.reverse()
    for line, undone in zip_longest(stage.update, inverse, fillvalue=""):
        table.add_row(Text(line), Text(undone))
    return table


def _print_exact(console: Console, exact: ExactSummary, is_reversed: bool) -> None:
    grid = f"exact: multiples of {exact.resolution:.2g} below {exact.limit:g}"
    if not is_reversed:
        console.print(grid)
        return
    console.print(
        f"{grid}; keeps {exact.bits:.3g} bits of information an element (no inverse keeps less "
        f"than {exact.bound:.3g})"
    )
    width = max(map(len, exact.forms), default=0)
    for text, form in exact.forms.items():
        console.print(Text(f"  {text:<{width}}  {form}", style="dim"))


def _print_verification(console: Console, found: dict[str, object]) -> None:
    def row(label: str, single: str, double: str) -> str:
        return f"  {label:<34}{_number(found[single]):>10}{_number(found[double]):>12}"

    if found["gradient_error"] is None:
        console.print("nothing to verify: activations are stored")
        return
    console.print(
        Text(f"  {'verified on random streams':<34}{'float32':>10}{'float64':>12}", "dim")
    )
    if found["roundtrip_error"] is not None:
        console.print(row("round trip", "roundtrip_error", "roundtrip_error_float64"))
    console.print(row("gradients against stored", "gradient_error", "gradient_error_float64"))
    if found["perturbation_gain"] is not None:
        console.print(
            f"  {'gain of a small perturbation':<34}{_number(found['perturbation_gain']):>10}"
        )
    if found["passed"]:
        console.print(Text("verified", style="bold green"))
    else:
        console.print(Text(f"verification failed: {_verdict(found)}", "bold red"))


def _verdict(found: dict[str, Any]) -> str:
    """What a failure means."""
    unsteady = [f"`{stage['name']}`" for stage in found["stages"] if not stage["repeatable"]]
    if not unsteady:
        return "these gradients would not train the network"
    return (
        f"the functions of stage {' and '.join(unsteady)} do not give the same twice for the same "
        "input: random numbers must come from torch's generators, and state must not change"
    )


def _number(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else "–"


def giga(count: int | None) -> str:
    """A count with its unit."""
    if count is None:
        return "–"
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"


def mega(count: int | None) -> str:
    """Bytes as megabytes (10^6)."""
    if count is None:
        return "–"
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
