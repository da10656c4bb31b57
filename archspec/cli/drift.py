"""archspec drift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, spec_argument
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.drift import Drift
    from compiler.growth import Curve
    from compiler.network import Network
    from compiler.plan import NetworkPlan


@click.command("drift")
@spec_argument
@settings_option
@allow_modules
@click.option("--stage", "only", metavar="NAME", help="This stage alone.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The plot, .png or .svg; NAME_drift.png by default.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=2,
    show_default=True,
    help="How many random inputs.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the weights and of the inputs.",
)
@json_option
def command(
    spec: str,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
    only: str | None,
    output: Path | None,
    batch: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how far streams drift on the way back, and plot it by depth.

    Each reversible stage is run forward on the streams that a random input gives it, and undone
    layer by layer: in float32, in bfloat16, and in exact arithmetic, whichever the spec names.
    Beside that stands what was predicted for float32.
    """
    import json

    from archspec.loading import load
    from compiler.resolve import resolve

    plan = resolve(load(spec, settings, packages))  # mistakes are told before torch is imported
    path = output or Path(f"{plan.name}_drift.png")
    names = _chosen(plan, only)
    if path.suffix not in (".png", ".svg"):
        raise click.UsageError(f"a plot is a .png or a .svg file, found {path}")
    if not path.parent.is_dir():  # before the work of measuring
        raise click.UsageError(f"cannot write {path}: there is no folder {path.parent}")

    drifts = _measured(plan, names, batch, seed)
    _print(drifts, to_stderr=as_json)
    if as_json:
        stages = [_plain(drift) for drift in drifts]
        click.echo(json.dumps({"name": plan.name, "stages": stages}, allow_nan=False))
    _plot(drifts, path, plan.name)


def _chosen(plan: NetworkPlan, only: str | None) -> list[str]:
    """The stages to measure. Raises `click.UsageError` where there are none."""
    from archspec.diagnostics import nearest

    stages = {stage.name: stage for stage in plan.stages}
    if only is not None and only not in stages:
        raise click.UsageError(f"{plan.name} has no stage `{only}`; {nearest(only, stages)}")
    wanted = [only] if only is not None else list(stages)
    found = [name for name in wanted if stages[name].backward == "reversible"]
    if not found:
        which = f"stage `{only}` of {plan.name}" if only is not None else f"no stage of {plan.name}"
        negative = "is not" if only is not None else "is"
        raise click.UsageError(
            f"{which} {negative} reversible (`backward: reversible`): where activations are stored "
            "or computed again, nothing drifts"
        )
    return found


def _measured(plan: NetworkPlan, names: list[str], batch: int, seed: int) -> list[Drift]:
    """Build the network, and measure stages of it. What cannot be measured ends with exit code 1,
    and a module of the user's own that cannot be made with 2."""
    import torch

    from compiler.drift import drift, given_by
    from compiler.network import build
    from compiler.user_modules import UserModuleError

    try:
        torch.manual_seed(seed)
        network: Network = build(plan)
        side = {s.name: torch.randn(batch, *s.shape.sizes) for s in plan.side}
        given = given_by(network, torch.randn(batch, *plan.input.sizes), side)
        return [drift(network.stages[name], given[name]) for name in names]
    except UserModuleError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        click.echo(f"error: cannot be measured: {error}", err=True)
        raise SystemExit(1) from None


COLUMNS = ("linear", "predicted", "float32", "bfloat16", "exact")


def _print(drifts: list[Drift], to_stderr: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=to_stderr, highlight=False)
    for drift in drifts:
        title = f"{drift.name}: relative error of the streams after so many layers are undone"
        console.print(Text(title, style="bold"))
        console.print(_table(drift))


def _table(drift: Drift) -> Table:
    from rich.table import Table

    curves: list[tuple[str, Curve | None]] = [
        ("predicted, linear part", drift.linear),
        ("predicted, with gain", drift.predicted),
        ("float32", drift.float32),
        ("bfloat16", drift.bfloat16),
        ("exact", drift.exact),
    ]
    shown = [(name, curve) for name, curve in curves if curve is not None]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("layers", *(name for name, _ in shown)):
        table.add_column(name, justify="right", no_wrap=True)
    for undone in _depths(drift.depth):
        table.add_row(str(undone), *(f"{curve[undone - 1]:.1e}" for _, curve in shown))
    return table


def _depths(depth: int) -> list[int]:
    """A handful of depths from 1 on, the last one among them."""
    steps = (1, 2, 3, 6, 12, 24, 48, 100, 200, 400, 1000, 2000, 4000)
    return [step for step in steps if step < depth] + [depth]


def _plain(drift: Drift) -> dict[str, object]:
    """For JSON: what is not a finite number is null."""
    import math

    def finite(curve: Curve | None) -> list[float | None] | None:
        return None if curve is None else [e if math.isfinite(e) else None for e in curve]

    curves = {name: finite(getattr(drift, name)) for name in (*COLUMNS, "predicted_bfloat16")}
    return {"stage": drift.name, "depth": drift.depth, **curves}


def _plot(drifts: list[Drift], path: Path, title: str) -> None:
    from runners.drift_plot import plot

    try:
        plot(drifts, path, title)
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror or error}") from None
    click.echo(f"written: {path}", err=True)
