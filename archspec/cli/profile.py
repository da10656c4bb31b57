"""archspec profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, numbers, spec_name
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option
from archspec.cli.shell import typed

if TYPE_CHECKING:
    import torch

    from archspec.loading import Loaded
    from archspec.training import Train
    from compiler.plan import NetworkPlan
    from runners.profile.report import Asked, Report, Row
    from runners.profile.schedules import AsWritten

STRATEGIES = ("store", "checkpoint", "root", "reversible")
CONTEXT = 768 * 2**20
"""Bytes of a GPU that are not for tensors: CUDA's own, and gaps between them."""


def size(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes, from a number with a unit. Raises `click.BadParameter`."""
    if text is None:
        return None
    from archspec.memory_size import bytes_of

    try:
        return bytes_of(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


def strategies_named(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    """Names of strategies, with commas between. Raises `click.BadParameter`."""
    from archspec.diagnostics import nearest

    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in STRATEGIES:
            message = f"there is no strategy `{name}`; {nearest(name, STRATEGIES)}"
            raise click.BadParameter(message, context, option)
    return tuple(dict.fromkeys(names))


@click.command("profile")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", callback=spec_name)
@settings_option
@click.option(
    "--batch",
    type=click.IntRange(1, 2**20),
    help="Samples at once, without accumulation; by default the recipe's.",
)
@click.option("--depths", callback=numbers, metavar="N,N,…", help="Profile each of these depths.")
@click.option(
    "--strategies",
    callback=strategies_named,
    default=",".join(STRATEGIES),
    show_default=True,
    metavar="NAME,…",
    help="Of the backward pass; `root` checkpoints the square root of the depth.",
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Where: auto, cpu or cuda. `cuda` is predicted where there is no GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "tf32", "bf16", "fp16")),
    help="By default the recipe's.",
)
@click.option(
    "--fit",
    callback=size,
    metavar="SIZE",
    help="Find the largest batch for a device with so much memory: --fit 8GiB.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="Timed steps of each strategy; 0 for memory alone.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where profile.json, profile.md and plots are written.",
)
@allow_modules
@json_option
def command(
    specs: tuple[str, ...],
    settings: tuple[str, ...],
    batch: int | None,
    depths: tuple[int, ...] | None,
    strategies: tuple[str, ...],
    device: str,
    precision: str | None,
    fit: int | None,
    repeats: int,
    output: Path | None,
    packages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what a training step of specs costs: memory, by what it is for, and time.

    Each is taken with stored activations, checkpointed before every layer and at the square root
    of the depth, and reversible. Memory is measured on the device that is there; for a GPU that
    is not there it is predicted.
    """
    import json

    from archspec.loading import load

    if output is not None:
        _make(output)
    loaded = [
        load(name, (*settings, *setting), packages)
        for name in specs
        for setting in _settings_of(load(name, settings, packages), depths)
    ]
    report = _report(loaded, batch, precision, strategies, device, fit, repeats, output is not None)
    _print(report, to_stderr=as_json)
    if output is not None:
        from runners.profile.pages import write_report

        click.echo(f"the report is {write_report(report, output)}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_dict()))


def _make(folder: Path) -> None:
    """Before the work of measuring. Raises `click.UsageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"--output: cannot write in {folder}: {error.strerror or error}"
        raise click.UsageError(message) from None


def _settings_of(loaded: Loaded, depths: tuple[int, ...] | None) -> list[tuple[str, ...]]:
    """The settings of each depth. Raises `click.UsageError` for networks of several stages, which
    have no one depth."""
    if depths is None:
        return [()]
    stages = list(loaded.spec.stages)
    if len(stages) > 1:
        names = ", ".join(stages)
        raise click.UsageError(
            f"--depths is for networks of one stage, and {loaded.spec.name} has {names}: "
            f"--set stages.{stages[0]}.depth=N"
        )
    return [(f"stages.{stages[0]}.depth={depth}",) for depth in depths]


def _report(
    loaded: list[Loaded],
    batch: int | None,
    precision: str | None,
    strategies: tuple[str, ...],
    device: str,
    fit: int | None,
    repeats: int,
    is_drawn: bool,
) -> Report:
    import sys

    from compiler.resolve import resolve
    from runners.profile.report import Asked, Report, by_batch, profile

    plans = [resolve(each) for each in loaded]  # mistakes are told before anything is measured
    _check_reversible(plans, strategies)
    where, is_there = _device(device)
    budget = fit - CONTEXT if fit is not None and where.type == "cuda" else fit
    if budget is not None and budget <= 0:
        raise click.UsageError(f"--fit: a GPU's driver alone takes some {CONTEXT // 2**20} MiB")
    asked = Asked(strategies, where, is_there, repeats, budget)
    recipes = [_recipe(each, batch, precision) for each in loaded]
    written = [_as_written(*each, where.type) for each in zip(loaded, plans, recipes, strict=True)]
    rows: list[Row] = []
    drawn: dict[str, list[tuple[int, int]]] = {}
    for plan, recipe, own in zip(plans, recipes, written, strict=True):
        rows += profile(plan.name, plan, recipe, asked, _tell, own)
        if is_drawn:
            drawn |= by_batch(plan.name, plan, recipe, asked)
    return Report(
        tuple(rows),
        typed(sys.argv[1:]),
        _machine(asked),
        tuple(dict.fromkeys(recipe.precision for recipe in recipes)),
        where.type,
        is_there,
        fit,
        budget,
        drawn,
    )


def _check_reversible(plans: list[NetworkPlan], strategies: tuple[str, ...]) -> None:
    """Raises `SpecError` where nothing is left to profile, and says what is left out."""
    from archspec.diagnostics import SpecError

    if strategies != ("reversible",):
        return
    without = [plan for plan in plans if not any(stage.invertible for stage in plan.stages)]
    if len(without) == len(plans):
        stages = [stage for plan in plans for stage in plan.stages]
        raise SpecError(obstacle for stage in stages for obstacle in stage.obstacles)
    for plan in without:
        _tell(f"{plan.name} has no inverse, and is left out")


def _as_written(loaded: Loaded, plan: NetworkPlan, recipe: Train, kind: str) -> AsWritten | None:
    from runners.profile.planning import as_written
    from runners.profile.prediction import Forecast

    return as_written(loaded, Forecast(plan, kind).network, recipe, kind)


def _device(name: str) -> tuple[torch.device, bool]:
    """The device, and whether it is there. Raises `SpecError`."""
    import torch

    from runners.devices import find_device

    if name.split(":")[0] == "cuda" and not torch.cuda.is_available():
        return torch.device("cuda"), False
    return find_device(name), True


def _recipe(loaded: Loaded, batch: int | None, precision: str | None) -> Train:
    """The spec's own, or a plain one, with what the command says instead."""
    from archspec.training import Train

    recipe = loaded.spec.train or Train(epochs=1, batch=64, learning_rate=1e-3)
    change: dict[str, object] = {"batch": batch, "precision": precision}
    if batch is not None:
        change["accumulate"] = 1
    return recipe.model_copy(update={key: v for key, v in change.items() if v is not None})


def _machine(asked: Asked) -> dict[str, str]:
    import platform

    import torch

    from archspec import __version__
    from runners.devices import device_name

    there = device_name(asked.device) if asked.is_there else f"{asked.device.type}, predicted"
    return {
        "device": there,
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "archspec": __version__,
    }


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _print(report: Report, to_stderr: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from runners.profile.tables import tables

    console = Console(stderr=to_stderr, highlight=False)
    for table in tables(report):
        console.print(Text(table.title, style="bold"))
        shown = Table(box=None, header_style="dim", pad_edge=False)
        for place, name in enumerate(table.header):
            shown.add_column(name, justify="left" if place == 0 else "right", no_wrap=place != 0)
        for row in table.rows:
            shown.add_row(*row)
        # Every column whole: where they are too many for a line, it is the terminal that breaks it.
        needed = Console(width=1000).measure(shown).maximum
        Console(stderr=to_stderr, highlight=False, width=max(console.width, needed)).print(shown)
        console.print(Text(table.note, style="dim"))
        console.print()
