"""archspec export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules
from archspec.cli.runs import Refused, opened, run_argument, told
from archspec.cli.runs import weights as weights_option

if TYPE_CHECKING:
    from runners.trained import Trained, Which


@click.command("export")
@run_argument
@click.option(
    "--format",
    "format",
    type=click.Choice(["safetensors", "torch", "onnx", "python"]),
    required=True,
    help="Weights; a program of torch.export; an ONNX model; or a Python file that needs torch and "
    "safetensors alone, with its weights beside it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="It ends in .safetensors, .pt2, .onnx or .py, by the format. In RUN/export by default.",
)
@weights_option
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Let a program take so many samples alone; any number by default.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@allow_modules
def command(
    run: Path,
    format: str,
    output: Path | None,
    weights: Which,
    batch: int | None,
    force: bool,
    packages: tuple[str, ...],
) -> None:
    """Write the trained network of a run for other programs.

    RUN is the folder that `archspec train` has left, or its name in runs. Each file says what it
    is: the spec is in its metadata.
    """
    if batch is not None and format not in ("torch", "onnx"):
        raise click.UsageError(f"--batch is for programs that are traced, and {format} takes any")
    from runners.export import FORMATS, file_name, written

    ending = FORMATS[format][0]
    if output is not None and output.suffix.lower() != ending:
        raise click.UsageError(f"a file of --format {format} ends in {ending}, found {output}")
    with told():
        trained = opened(run, weights, packages)
    path = output or trained.folder.path / "export" / file_name(trained.name, format)
    there = [file for file in written(format, path) if file.exists()]
    if there and not force:
        names = " and ".join(map(str, there))
        raise Refused(f"{names}: not replaced; --force does, or --output names another file")
    _write(trained, format, path, batch)


def _write(trained: Trained, format: str, path: Path, batch: int | None) -> None:
    from runners.export import FORMATS, ExportError, notes, written

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[format][1](trained, path, batch)
    except ExportError as error:
        raise Refused(f"{error}\nnot written: {path}") from None
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror or error}") from None
    for note in notes(trained, format):
        click.echo(f"note: {note}", err=True)
    for file in written(format, path):
        click.echo(f"written: {file}")
