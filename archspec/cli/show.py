"""archspec show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, spec_argument, tell_shadow
from archspec.cli.options import settings as settings_option

if TYPE_CHECKING:
    from compiler.plan import NetworkPlan


@click.command("show")
@spec_argument
@click.option(
    "--resolved",
    is_flag=True,
    help="With all that it inherits written out, and where each value comes from.",
)
@click.option(
    "--svg",
    "drawn",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the picture to an SVG file too, for light and dark pages.",
)
@settings_option
@allow_modules
def command(
    spec: str,
    resolved: bool,
    drawn: Path | None,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
) -> None:
    """Print a spec, and draw one of its layers.

    Streams are lanes, which time runs down along; functions are boxes, updates are arrows. The
    picture is a comment: what is printed loads again. The name of a coupling prints that, with its
    inverse and its papers.
    """
    from textwrap import wrap

    from archspec.cli.origins import origin
    from archspec.dumping import dump
    from archspec.finding import find
    from archspec.loading import load, ordered
    from archspec.starting import SCHEMA, readdressed
    from compiler.picture import pictures
    from compiler.picture_text import WIDTH, draw
    from compiler.resolve import resolve

    if coupling := _coupling(spec):
        tell_shadow(spec, "couplings", "coupling")
        if resolved or settings or drawn:
            raise click.UsageError(f"{coupling} is a coupling: it is printed as it is")
        _show_coupling(coupling)
        return
    loaded = load(spec, settings, packages)
    plan = resolve(loaded)
    if resolved or settings:
        text = dump(ordered(loaded.tree), origin)
    else:
        file = find(spec, Path.cwd(), None).read_text(encoding="utf-8-sig")
        text = readdressed(file, SCHEMA)
    if drawn is not None:
        _write(plan, drawn)
    click.echo(text, nl=not text.endswith("\n"))
    for title, picture in pictures(plan).items():
        lines = (*wrap(f"{title}:", WIDTH), "", *draw(picture))
        click.echo("\n" + "\n".join(f"# {line}".rstrip() for line in lines))


def _coupling(name: str) -> Path | None:
    """The file of the coupling that a name means, unless it means a spec."""
    from archspec.diagnostics import SpecError
    from archspec.finding import coupling_file, find
    from archspec.loading import read_file

    try:
        path = find(name, Path.cwd(), None)
        keys = read_file(path).map
    except SpecError:
        return coupling_file(name)
    return path if "coupling" in keys and "stages" not in keys else None


def _show_coupling(path: Path) -> None:
    from archspec.cli.couplings import shown
    from archspec.starting import COUPLING_SCHEMA, readdressed

    click.echo(readdressed(shown(path), COUPLING_SCHEMA))


def _write(plan: NetworkPlan, path: Path) -> None:
    """Write the picture. A file that archspec has not written, or that was edited, is to stay."""
    from compiler.picture import pictures
    from compiler.picture_svg import svg
    from compiler.signing import is_as_written
    from runners.files import write_text

    updates = "; ".join(dict.fromkeys(step.text for stage in plan.stages for step in stage.steps))
    try:
        if path.exists() and not is_as_written(path.read_text(encoding="utf-8", errors="replace")):
            raise click.UsageError(
                f"{path} is a file that archspec has not written, or that was changed since: not "
                "replaced"
            )
        write_text(path, svg(pictures(plan), f"One layer of {plan.name}: {updates}"))
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise click.UsageError(message) from None
    click.echo(f"written: {path}", err=True)
