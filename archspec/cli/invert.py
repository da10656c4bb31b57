"""archspec invert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules
from archspec.cli.runs import Refused, opened, run_argument, told
from archspec.cli.runs import weights as weights_option
from archspec.cli.sample import check_label, refuse_what_is_there
from archspec.cli.training import device as device_option

if TYPE_CHECKING:
    from torch import Tensor

    from runners.encoding import Inverted
    from runners.trained import Trained, Which

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST = 1000
"""So many images go through at once."""
SHOWN = 12


@click.command("invert")
@run_argument
@click.argument("images", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option(
    "--label",
    type=click.IntRange(min=0),
    help="Of a density that knows classes: that of the images, from 0.",
)
@weights_option
@device_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="For grid.png, images/00000.png and so on, and latents.safetensors; RUN/inverted by "
    "default.",
)
@click.option("--force", is_flag=True, help="Replace a folder that is there.")
@allow_modules
def command(
    run: Path,
    images: tuple[Path, ...],
    label: int | None,
    weights: Which,
    device: str,
    output: Path | None,
    force: bool,
    packages: tuple[str, ...],
) -> None:
    """Encode images by the density of a run, and decode them again.

    RUN is the folder that `archspec train` has left of a spec with `task: density`, or its name
    in runs; IMAGES are files, and folders of files. Each image is told by its bits per dimension,
    and by how far it comes back from what it was.
    """
    from runners.devices import matrix_precision
    from runners.encoding import classes_of, flow_of, there_and_back
    from runners.train import recipe_and_data

    paths = _files(images)
    with told():
        trained = opened(run, weights, packages)
        flow_of(trained)  # or why there is none
        check_label(label, classes_of(trained))
        if label is None and classes_of(trained):
            raise Refused("this density is of images given their class: --label says it")
        folder = output or trained.folder.path / "inverted"
        refuse_what_is_there(folder, trained.folder.path, force)
        given = _read(trained, paths)
        with matrix_precision(recipe_and_data(trained.loaded)[0]):
            found = there_and_back(trained, given, label, device)
    _write(given, found, folder)
    for path, bits in list(zip(paths, found.bits.tolist(), strict=True))[:SHOWN]:
        click.echo(f"{bits:8.4f} bits per dimension, in the middle of its levels  {path}")
    if len(paths) > SHOWN:
        mean = float(found.bits.mean())
        click.echo(f"{mean:8.4f} bits per dimension, the mean of {len(paths):,} images")
    click.echo(f"largest error of the values that came back: {found.largest_error:.1e}")
    click.echo(f"written: {folder / 'grid.png'}, latents.safetensors, and images beside them")


def _read(trained: Trained, paths: list[Path]) -> Tensor:
    """Raises `Refused` for a file that is no image."""
    from runners.encoding import read_images
    from runners.errors import TrainingError

    try:
        return read_images(trained, paths)
    except TrainingError as error:
        raise Refused(str(error).partition(";")[0]) from None


def _files(given: tuple[Path, ...]) -> list[Path]:
    """The files given, and those of folders, in order."""
    found: list[Path] = []
    for path in given:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        known = (each for each in inside if each.suffix.lower() in ENDINGS or each == path)
        files = [each for each in known if each.is_file()]
        if not files:
            raise Refused(f"there are no images in {path}: they end in {', '.join(ENDINGS)}")
        found += files
    if len(found) > MOST:
        raise Refused(f"{len(found):,} images are too many at once: {MOST:,} are the most")
    return found


def _write(given: Tensor, found: Inverted, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from runners.pictures import replacing_folder, write_folder, write_grid

    named = {f"latent_{n}": value.contiguous() for n, value in enumerate(found.latents)}
    try:
        with replacing_folder(folder) as partial:
            write_folder(found.images, partial / "images")
            save_file(named, partial / "latents.safetensors")
            pairs = [given[:SHOWN], found.images[:SHOWN]]
            write_grid(torch.cat(pairs), partial / "grid.png", min(len(given), SHOWN))
    except OSError as error:
        raise Refused(f"cannot write in {folder}: {error.strerror or error}") from None
