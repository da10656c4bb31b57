"""archspec convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, spec_argument
from archspec.cli.options import settings as settings_option
from archspec.cli.shell import typed

if TYPE_CHECKING:
    from archspec.loading import Loaded
    from compiler.conversion.sources import Source
    from compiler.network import Network
    from compiler.plan import NetworkPlan

LABEL = "archspec convert"
"""The key of a file's metadata that says what the file is."""


class Refused(click.ClickException):
    """What was asked for cannot be; the command itself was written right."""

    exit_code = 2


@click.command("convert")
@spec_argument
@click.option(
    "--from",
    "source",
    required=True,
    metavar="MODEL",
    help="torchvision's or timm's name of a model (vit_b_16, resnet101, vit_base_patch16_224), or "
    "a file of its weights (.safetensors, .pth).",
)
@settings_option
@allow_modules
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the weights; `train.start_from` of the spec by default, or else "
    "NAME.safetensors.",
)
@click.option("--new-head", is_flag=True, help="Leave out the classifier: start it afresh.")
@click.option(
    "--resize-positions",
    is_flag=True,
    help="Interpolate the embeddings of positions to the spec's image size.",
)
def command(
    spec: str,
    source: str,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
    output: Path | None,
    new_head: bool,
    resize_positions: bool,
) -> None:
    """Write published weights under the names of a spec, for training to start from.

    torchvision, or timm, downloads them. Each tensor of the spec is filled once, and each of the
    model's is used once; both networks are run on random images, and compared. Exit code 2 where
    the weights do not fit, 1 where they cannot be downloaded.
    """
    from archspec.loading import load
    from compiler.resolve import resolve

    loaded = load(spec, settings, packages)
    plan = resolve(loaded)  # mistakes are told before torch is imported
    starts_from = loaded.spec.train.start_from if loaded.spec.train else None
    path = output or Path(starts_from or f"{loaded.spec.name}.safetensors")
    options = {"a new head": new_head, "resized positions": resize_positions}
    more = (*settings, *(option for option, given in options.items() if given))
    label = ", ".join([f"{loaded.spec.name} from {source}", *more])
    _refuse_to_replace(path, label)

    given, network = _converted(plan, source, new_head, resize_positions)
    _say_how_they_differ(given, network, new_head, resize_positions)
    _write(network, path, label)
    _say_what_is_next(spec, settings, loaded, path)


def _refuse_to_replace(path: Path, label: str) -> None:
    """Raises `Refused` for a file that this very command has not written, and for no folder."""
    from safetensors import SafetensorError, safe_open

    if not path.parent.is_dir():
        raise Refused(f"cannot write {path}: there is no folder {path.parent}")
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(LABEL)
    except (OSError, SafetensorError):
        found = None
    if found != label:
        what = f"holds {found}" if found else "is another's file"
        raise Refused(f"{path} {what}: not replaced; choose another with --output")


def _converted(
    plan: NetworkPlan, name: str, new_head: bool, resize_positions: bool
) -> tuple[Source, Network]:
    """The source, and the network with its weights. What does not fit ends with exit code 2."""
    import torch

    from compiler.conversion.convert import ConversionError, convert, paired, weights_of
    from compiler.conversion.sources import DownloadError, SourceError, open_source, outline
    from compiler.network import build
    from compiler.user_modules import UserModuleError

    torch.manual_seed(0)  # of a new classifier
    try:
        network = build(plan)
        if (known := outline(name)) is not None:  # before a download
            paired(known, weights_of(network), new_head)
        source = open_source(name)
        weights = convert(source.tensors, weights_of(network), new_head, resize_positions)
    except (UserModuleError, SourceError) as error:
        raise Refused(str(error)) from None
    except ConversionError as error:
        raise Refused(f"{name} does not go into this spec: {error}") from None
    except DownloadError as error:
        raise click.ClickException(str(error)) from None
    network.load_state_dict(weights, strict=False)
    sizes = {each: value.numel() for each, value in network.named_parameters()}
    loaded = sum(size for each, size in sizes.items() if each in weights)
    fresh = f"; {sum(sizes.values()) - loaded:,} of the new classifier" if new_head else ""
    click.echo(f"loaded {loaded:,} parameters in {len(weights)} tensors{fresh}")
    return source, network


def _say_how_they_differ(
    source: Source, network: Network, new_head: bool, resize_positions: bool
) -> None:
    """Run both on random images, where the source's model is known and takes images as large."""
    from compiler.conversion.compare import compare
    from compiler.conversion.convert import recognised
    from compiler.exact import RangeError

    if source.model is None:
        click.echo("not compared: a file of weights does not say what its model computes")
        return
    if resize_positions:
        click.echo("not compared: the model takes images of another size")
        return
    classifier = recognised(source.tensors).classifier if new_head else None
    try:
        found = compare(source.model, network, classifier)
    except RangeError as error:
        raise click.ClickException(str(error)) from None
    before = " before the classifier" if new_head else ""
    click.echo(
        f"outputs{before} differ by {found.apart:.1e} from the model's, the largest of which is "
        f"{found.largest:.1e}"
    )
    if found.largest == 0:
        click.echo(
            "warning: the model gives zeros alone, so that nothing was compared: its classifier is "
            "not trained",
            err=True,
        )
    elif not found.same:
        click.echo(
            "warning: the network starts as another function than the model: its updates are "
            "others, or settings of its layers",
            err=True,
        )


def _write(network: Network, path: Path, label: str) -> None:
    """Write the weights whole or not at all."""
    import safetensors.torch

    from runners.files import replacing

    try:
        with replacing(path) as partial:
            safetensors.torch.save_model(network, str(partial), {LABEL: label})
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror or error}") from None
    click.echo(f"written: {path}")


def _say_what_is_next(spec: str, settings: tuple[str, ...], loaded: Loaded, path: Path) -> None:
    from archspec.dumping import scalar_text

    if loaded.spec.train is None or loaded.spec.data is None:
        return
    if loaded.spec.train.start_from != str(path):
        settings = (*settings, f"train.start_from={scalar_text(str(path))}")
    given = [part for setting in settings for part in ("--set", setting)]
    given += [part for package in loaded.packages for part in ("--allow-modules", package)]
    click.echo(f"next: {typed(['train', spec, *given])}")
