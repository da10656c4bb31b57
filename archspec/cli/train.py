"""archspec train."""

from __future__ import annotations

from pathlib import Path

import click

from archspec.cli.options import allow_modules, spec_argument
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option
from archspec.cli.processes import is_first
from archspec.cli.training import device as device_option
from archspec.cli.training import told


@click.command("train")
@spec_argument
@settings_option
@allow_modules
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder; runs/NAME by default. A run that is there goes on where it stopped.",
)
@device_option
@click.option("--quiet", is_flag=True, help="No progress bar.")
@json_option
def command(
    spec: str,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
    output: Path | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a spec on its data, and test it once at the end.

    The best weights are chosen on a validation split. Given again, the same command continues a
    run that was killed, or reports one that is finished. Exit code 1 if the loss is no longer a
    finite number. Gradients are not verified here: `archspec build` does that.
    """
    import json

    from archspec.loading import load
    from compiler.resolve import resolve

    loaded = load(spec, settings, packages)
    plan = resolve(loaded)  # mistakes are told before torch is imported

    from compiler.summary import growth_warning
    from runners.run_folder import RunFolder
    from runners.tasks import METRICS
    from runners.train import train

    for warning in filter(None, map(growth_warning, plan.stages if is_first() else ())):
        click.echo(f"warning: {warning}. `archspec build` measures it", err=True)
    folder = output or Path("runs") / loaded.spec.name
    finished = RunFolder(folder).result.is_file()
    with told(folder):
        result = train(loaded, folder, device=device, quiet=quiet)
    if not is_first():
        return
    if finished:
        again = "to train it anew, remove its folder or choose another with --output"
        click.echo(f"this run was finished before; {again}", err=True)
    measured = METRICS[result.metric].text(result.test_metric)
    click.echo(
        f"test {result.metric} {measured} with the weights of epoch {result.best_epoch} "
        f"of {result.epochs} ({result.seconds:.0f} s); all in {result.output}",
        err=as_json,
    )
    recipe = loaded.spec.train
    if recipe is not None and result.epochs < recipe.epochs:
        tired = recipe.patience and result.epochs - result.best_epoch >= recipe.patience
        by = "patience" if tired else "max_minutes"
        early = f"ended after {result.epochs} of {recipe.epochs} epochs"
        click.echo(f"{early}, by train.{by}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_json()))
