"""archspec evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archspec.cli.options import allow_modules, finite, numbers
from archspec.cli.options import as_json as json_option
from archspec.cli.runs import Refused, opened, run_argument, told
from archspec.cli.runs import weights as weights_option
from archspec.cli.solving import refuse_unused, solving_of, solving_options

if TYPE_CHECKING:
    from runners.evaluation import Evaluation, Part, Subject
    from runners.fidelity import Features
    from runners.generation_evaluation import Compared
    from runners.inversion import Beside
    from runners.trained import Trained, Which


FEWEST = 16
"""Images that fidelity is told of, as in `runners.likeness`."""
FILES = ("evaluation.json", "confusion.svg", "reliability.svg", "inversion.png")


def constant_values(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[str, tuple[float, ...]] | None:
    """A name, and numbers with commas between. Raises `click.BadParameter`."""
    if text is None:
        return None
    name, _, numbers = text.partition("=")
    try:
        values = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        values = ()
    if not name or not values or not all(0 < abs(value) < 1e6 for value in values):
        message = f"`{text}`: write it as gamma=0.5,0.9, of numbers that are not 0"
        raise click.BadParameter(message, context, option)
    return name.strip(), tuple(dict.fromkeys(values))


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
@click.option("--batch", type=click.IntRange(min=1), help="Samples at a time; as in training.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where the network runs.",
)
@click.option(
    "--fidelity",
    is_flag=True,
    help="Of a network that makes images: hold its samples against the split, by "
    "torch-fidelity: Inception score, FID, KID, precision and recall.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="With --fidelity: the run of a classifier, by whose features samples are compared. By "
    "default it is Inception, whose weights are downloaded once.",
)
@click.option(
    "--samples",
    type=click.IntRange(FEWEST, 1_000_000),
    help="With --fidelity: how many; as many as the split has by default.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=finite,
    default=1.0,
    show_default=True,
    help="With --fidelity: times the noise that samples are made of.",
)
@solving_options
@click.option(
    "--inversion",
    is_flag=True,
    help="Send images through a stage and back by its inverse, in float32, in bf16 and in exact "
    "arithmetic. With --fidelity, what comes back is held against the images.",
)
@click.option("--stage", help="With --inversion: which; the first one by default.")
@click.option(
    "--images",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="With --inversion: how many.",
)
@click.option(
    "--layers",
    callback=numbers,
    metavar="N,N,…",
    help="With --inversion: after how many layers to turn back; a quarter, half and all of them "
    "by default.",
)
@click.option(
    "--constant",
    callback=constant_values,
    metavar="NAME=N,N,…",
    help="With --inversion: other values for a constant of the stage, such as gamma=0.5,0.9.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write evaluation.json there and, of a classifier, confusion.svg and reliability.svg; of "
    "--inversion, the picture strip inversion.png. "
    "Those of another run, or of other data, are not replaced.",
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
    fidelity: bool,
    features: Path | None,
    samples: int | None,
    temperature: float,
    solving: dict[str, Any],
    inversion: bool,
    stage: str | None,
    images: int,
    layers: tuple[int, ...] | None,
    constant: tuple[str, tuple[float, ...]] | None,
    output: Path | None,
    packages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the network of a run on its test set, or on other data.

    RUN is the folder that `archspec train` has left, or its name in runs. Beside the loss and the
    metric of the task, a classifier is told by its top-5 accuracy, its confusions and its
    calibration; and the samples that it takes in a second, once it has run on a first batch.
    Nothing is written without --output.
    """
    import json

    if not fidelity and (features, samples, temperature, solving) != (None, None, 1.0, {}):
        said = "--features, --samples, --temperature, --steps, --solver and --guidance"
        raise click.UsageError(f"{said} go with --fidelity")
    if not inversion and (layers, constant, stage, images) != (None, None, None, 64):
        raise click.UsageError("--layers, --constant, --stage and --images go with --inversion")
    if inversion and fidelity and images < FEWEST:
        raise click.UsageError(f"--fidelity compares sets of images: --images {FEWEST}, or more")
    from runners.evaluation import data_of, evaluate_run, subject_of
    from runners.inversion import Trips

    with told():
        trained = opened(run, weights, packages)
        if output is not None:
            _refuse_others(output, subject_of(trained, data_of(trained, data), split))
        by = _features(features, trained, device, packages) if fidelity else None
        if not makes_images(trained) and (samples, temperature, solving) != (None, 1.0, {}):
            raise Refused("this network makes no images: --samples and the like say nothing of it")
        compared = None
        if by is not None and (makes_images(trained) or not inversion):
            compared = _compared(trained, device, solving, samples, temperature, by)
        beside = None if by is None else _beside(by)
        trips = Trips(layers or (), constant, stage, images, beside)
        if output is not None:  # before the work of measuring
            _make(output)
        found = evaluate_run(
            trained,
            part=split,
            data=data,
            batch=batch,
            device=device,
            compared=compared,
            trips=trips if inversion else None,
        )

    if output is not None:  # before printing, which a closed pipe ends
        _write(found, output)

    from archspec.cli.evaluation_report import print_evaluation

    print_evaluation(found, to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(found.as_json(), allow_nan=False))


def makes_images(trained: Trained) -> bool:
    """Whether that is what the network of a run is for."""
    from archspec.training import Generative

    return isinstance(trained.loaded.spec.task, Generative)


def _features(
    path: Path | None, trained: Trained, device: str, packages: tuple[str, ...]
) -> Features:
    """Those of a classifier's run, or of Inception."""
    from runners.devices import find_device
    from runners.fidelity import Features, classifier_features
    from runners.likeness import INCEPTION

    if path is None:
        return Features(INCEPTION)
    classifier = opened(path, "best", packages)
    sizes = trained.loaded.spec.input.sizes
    return Features(str(path), classifier_features(classifier, find_device(device), sizes))


def _compared(
    trained: Trained,
    device: str,
    solving: dict[str, Any],
    samples: int | None,
    temperature: float,
    features: Features,
) -> Compared:
    """What is asked for of samples."""
    from runners.generation import sampler_of
    from runners.generation_evaluation import Compared

    sampler = sampler_of(trained, device, solving_of(solving))
    refuse_unused(sampler, solving, trained.loaded.spec.task)
    return Compared(sampler, samples, temperature, features)


def _beside(features: Features) -> Beside:
    """What is asked for of reconstructions."""
    from functools import partial

    from runners.fidelity import measure_likeness
    from runners.inversion import Beside

    return Beside(features.name, partial(measure_likeness, features=features))


def _refuse_others(folder: Path, subject: Subject) -> None:
    """Only a measurement of the same is replaced."""
    import json

    there = [folder / name for name in FILES if (folder / name).exists()]
    if not there:
        return
    try:
        found = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    known = isinstance(found, dict)
    if why := subject.other(found) if known else "not written by archspec evaluate":
        help = "choose another folder with --output, or remove what is there"
        raise Refused(f"{there[0]} is not replaced: {why}; {help}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None


def _write(found: Evaluation, folder: Path) -> None:
    from runners.evaluation_plots import plot_confusion, plot_reliability
    from runners.files import replacing, write_json
    from runners.inversion import write_strip

    try:
        # First: it tells of what the plots beside it are.
        write_json(folder / "evaluation.json", found.as_json())
        if found.classes is not None:
            plot_confusion(found, folder / "confusion.svg")
            plot_reliability(found, folder / "reliability.svg")
        (folder / "inversion.png").unlink(missing_ok=True)
        if found.strip is not None:
            with replacing(folder / "inversion.png") as partial:
                write_strip(found.strip, partial)
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None
    click.echo(f"written: {folder / 'evaluation.json'}", err=True)
