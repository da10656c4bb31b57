"""archspec list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archspec.cli.options import as_json as json_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.table import Table

    from archspec.loading import Loaded
    from compiler.catalogue import Entry


@click.command("list")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--family", metavar="NAME", help="Only specs of a family whose name has this in it.")
@json_option
def command(patterns: tuple[str, ...], family: str | None, as_json: bool) -> None:
    """List the shipped specs: family, parameters, MACs of one input, data set, papers.

    PATTERN is a name, or part of one with `*`: archspec list "momrev*". All that is listed is
    computed from the specs, without allocating the networks.
    """
    import json
    from dataclasses import asdict

    from archspec.loading import zoo

    paths = _named(sorted(zoo().glob("*.yaml")), patterns)
    loaded = _of_family(list(_loaded(paths)), family)

    from compiler.catalogue import entry

    entries = [entry(each) for each in loaded]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in entries], ensure_ascii=False))
    else:
        _print(entries)


def _named(paths: list[Path], patterns: tuple[str, ...]) -> list[Path]:
    """The files of these names. Raises `click.UsageError` for a pattern that is no spec's."""
    from fnmatch import fnmatchcase

    from archspec.diagnostics import nearest

    for pattern in patterns:
        if not any(fnmatchcase(path.stem, pattern) for path in paths):
            known = nearest(pattern, (path.stem for path in paths))
            raise click.UsageError(f"there is no shipped spec `{pattern}`; {known}")
    return [path for path in paths if any(fnmatchcase(path.stem, p) for p in patterns or ("*",))]


def _loaded(paths: list[Path]) -> Iterator[Loaded]:
    """The specs that are right; one that is not is told of, and left out."""
    from archspec.diagnostics import SpecError
    from archspec.loading import load
    from compiler.resolve import resolve

    for path in paths:
        try:
            loaded = load(path)
            resolve(loaded)
        except SpecError:
            hint = f"`archspec check {path.stem}` says why"
            click.echo(f"warning: {path.stem} is left out: {hint}", err=True)
        else:
            yield loaded


def _of_family(specs: list[Loaded], family: str | None) -> list[Loaded]:
    """The specs of a family. Raises `click.UsageError` where there are none."""
    from archspec.citations import family_of
    from archspec.diagnostics import nearest

    if family is None:
        return specs
    names = {each.spec.name: family_of(each.spec) or "" for each in specs}
    found = [each for each in specs if family.casefold() in names[each.spec.name].casefold()]
    if not found:
        known = nearest(family, filter(None, names.values()))
        raise click.UsageError(f"there is no family `{family}`; {known}")
    return found


def _print(entries: list[Entry]) -> None:
    from rich.console import Console

    from archspec.cli.report import PIPE_WIDTH

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(_table(entries))


def _table(entries: list[Entry]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from archspec.cli.report import giga

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("name", "family"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("data set", "citation"):
        table.add_column(name)
    for each in entries:
        table.add_row(
            each.name,
            Text(each.family or "–"),
            f"{each.parameters:,}",
            giga(each.macs),
            each.data or "–",
            Text(", ".join(each.cite) or "–"),
        )
    return table
