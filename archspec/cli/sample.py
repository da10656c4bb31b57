"""archspec sample."""

from __future__ import annotations

import os
import re
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archspec.cli.options import allow_modules, finite
from archspec.cli.runs import Refused, opened, run_argument, told
from archspec.cli.runs import weights as weights_option
from archspec.cli.solving import refuse_unused, solving_of, solving_options
from archspec.cli.training import device as device_option

if TYPE_CHECKING:
    from torch import Tensor

    from runners.trained import Which

GRID = 100
"""So many images of all are in the grid."""


@click.command("sample")
@run_argument
@click.option(
    "--count",
    "--samples",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    help="How many images.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=finite,
    default=1.0,
    show_default=True,
    help="Times the noise that images are made of: below 1, they are more alike, and more likely.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of noise."
)
@click.option(
    "--label",
    type=click.IntRange(min=0),
    help="Of a network that knows classes: the one to draw, from 0; without it they take turns.",
)
@solving_options
@click.option(
    "--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time."
)
@weights_option
@device_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="For grid.png and images/00000.png and so on; RUN/samples by default.",
)
@click.option("--force", is_flag=True, help="Replace a folder that is there.")
@allow_modules
def command(
    run: Path,
    count: int,
    temperature: float,
    seed: int,
    label: int | None,
    solving: dict[str, Any],
    batch: int,
    weights: Which,
    device: str,
    output: Path | None,
    force: bool,
    packages: tuple[str, ...],
) -> None:
    """Draw images by the network of a run.

    RUN is the folder that `archspec train` has left of a spec with `task: density` or
    `task: flow_matching`, or its name in runs. On one device the same seed
    and batch draw the same images.
    """
    from runners.devices import matrix_precision
    from runners.generation import draw, sampler_of
    from runners.train import recipe_and_data

    with told():
        trained = opened(run, weights, packages)
        sampler = sampler_of(trained, device, solving_of(solving))
        refuse_unused(sampler, solving, trained.loaded.spec.task)
        check_label(label, sampler.classes)
        folder = output or trained.folder.path / "samples"
        refuse_what_is_there(folder, trained.folder.path, force)
        with matrix_precision(recipe_and_data(trained.loaded)[0]):
            images = draw(sampler, count, temperature, seed, batch, label)
    _write(images, folder)


def check_label(label: int | None, classes: int) -> None:
    """Raises `Refused` for a class that a network does not know."""
    if label is None or label < classes:
        return
    if not classes:
        raise Refused("--label goes with `classes: 10` in a task `density` or `flow_matching`")
    raise Refused(f"there is no class {label}: they are numbered from 0 to {classes - 1}")


OWN = re.compile(r"grid\.png|latents\.safetensors|images|images/\d{5,}\.png")
"""What the folders hold that are written here."""


def refuse_what_is_there(folder: Path, run: Path, force: bool) -> None:
    """Raises `Refused` for a folder that is not to be replaced, that holds something else, such as
    the run, or that cannot be written."""
    if folder.is_symlink():
        raise Refused(f"{folder} is a link, and not replaced; choose another --output")
    if folder.exists() and not force:
        raise Refused(f"{folder}: not replaced; --force does, or --output names another folder")
    for inside in (Path.cwd(), run):
        if folder.exists() and inside.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{folder} is not replaced: {inside} is in it; choose another --output")
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    if strange := next((name for name in names if not OWN.fullmatch(name)), None):
        raise Refused(f"{folder} is not replaced: {strange} in it is not ours")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise Refused(f"cannot write in {above}")


def _write(images: Tensor, folder: Path) -> None:
    from runners.pictures import replacing_folder, write_folder, write_grid

    try:
        with replacing_folder(folder) as partial:
            write_folder(images, partial / "images")
            write_grid(images[:GRID], partial / "grid.png", ceil(sqrt(min(len(images), GRID))))
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None
    click.echo(f"written: {folder / 'grid.png'}, and {len(images):,} images in {folder / 'images'}")
