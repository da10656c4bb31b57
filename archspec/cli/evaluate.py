"""archspec evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules
from archspec.cli.options import as_json as json_option
from archspec.cli.runs import Refused, opened, run_argument, told
from archspec.cli.runs import weights as weights_option

if TYPE_CHECKING:
    from runners.evaluation import Evaluation, Part
    from runners.trained import Which


@click.command("evaluate")
@run_argument
@click.option(
    "--data",
    metavar="DATA",
    help="Other data than the run's: a folder of images, or a data set as specs write it, such as "
    "{cifar10: ../data}.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Which part of the data.",
)
@weights_option
@click.option("--batch", type=click.IntRange(min=1), help="Samples at a time; the recipe's.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where the network runs.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write evaluation.json and, of a classifier, confusion.svg and reliability.svg there.",
)
@allow_modules
@json_option
def command(
    run: Path,
    data: str | None,
    split: Part,
    weights: Which,
    batch: int | None,
    device: str,
    output: Path | None,
    packages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the network of a run on its test set, or on other data.

    RUN is the folder that `archspec train` has left. Beside the loss and the metric of the task, a
    classifier is told by its top-5 accuracy, its confusions and its calibration; and the samples
    that it takes in a second, once it has run on a first batch. Nothing is written without
    --output.
    """
    import json

    from runners.evaluation import evaluate_run

    with told():
        trained = opened(run, weights, packages)
        if output is not None:  # before the work of measuring
            _make(output)
        found = evaluate_run(trained, part=split, data=data, batch=batch, device=device)

    from archspec.cli.evaluation_report import print_evaluation

    print_evaluation(found, to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(found.as_json(), allow_nan=False))
    if output is not None:
        _write(found, output)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None


def _write(found: Evaluation, folder: Path) -> None:
    from runners.evaluation_plots import plot_confusion, plot_reliability
    from runners.files import write_json

    try:
        if found.classes is not None:
            plot_confusion(found, folder / "confusion.svg")
            plot_reliability(found, folder / "reliability.svg")
        write_json(folder / "evaluation.json", found.as_json())
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None
    click.echo(f"written: {folder / 'evaluation.json'}", err=True)
