"""archspec list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archspec.cli.options import as_json as json_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from archspec.loading import Loaded
    from compiler.catalogue import Entry

WIDE = 180
"""Columns of a terminal from which the summaries have room."""


@click.command("list")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--family", metavar="NAME", help="Only specs of a family whose name has this in it.")
@click.option(
    "--couplings", "of_couplings", is_flag=True, help="The couplings instead, with their updates."
)
@json_option
def command(
    patterns: tuple[str, ...], family: str | None, of_couplings: bool, as_json: bool
) -> None:
    """List the shipped specs: family, parameters, MACs of one input, data set, papers.

    PATTERN is a name, or part of one with `*`: archspec list "momrev*". A wide terminal and --json
    have the summaries too.
    """
    import json
    from dataclasses import asdict

    from archspec.finding import zoo

    if of_couplings:
        _list_couplings(patterns, family, as_json)
        return
    paths = _named(sorted(zoo().glob("*.yaml")), patterns)
    loaded = _of_family(list(_loaded(paths)), family)

    from compiler.catalogue import entry

    entries = [entry(each) for each in loaded]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in entries], ensure_ascii=False))
    else:
        console = _console()
        console.print(_table(_rows(entries, console)))


def _list_couplings(patterns: tuple[str, ...], family: str | None, as_json: bool) -> None:
    import json

    from archspec.cli.couplings import shipped, table
    from archspec.finding import zoo

    if family is not None:
        raise click.UsageError("couplings have no family: leave out --family")
    paths = _named(sorted((zoo() / "couplings").glob("*.yaml")), patterns)
    wanted = {path.stem for path in paths}
    found = [each for each in shipped() if each.coupling in wanted]
    if as_json:
        plain = [each.model_dump(mode="json", exclude={"archspec"}) for each in found]
        click.echo(json.dumps(plain, ensure_ascii=False))
    else:
        _console().print(table(found))


def _named(paths: list[Path], patterns: tuple[str, ...]) -> list[Path]:
    """The files of these names. Raises `click.UsageError` for a pattern that is no spec's."""
    from fnmatch import fnmatchcase

    from archspec.finding import near, zoo

    for pattern in patterns:
        if not any(fnmatchcase(path.stem, pattern) for path in paths):
            known = near(pattern, paths[0].parent)
            what = paths[0].parent.name.removesuffix("s")
            if what == "spec" and (zoo() / "couplings" / f"{pattern}.yaml").is_file():
                known = f"it is a coupling: archspec list --couplings {pattern}"
            raise click.UsageError(f"there is no shipped {what} `{pattern}`; {known}")
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


def _console() -> Console:
    from rich.console import Console

    from archspec.cli.report import PIPE_WIDTH

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _rows(entries: list[Entry], console: Console) -> Iterator[tuple[str, ...]]:
    """The heads of the columns, and then a row for each spec; the last column is for wide
    terminals."""
    from archspec.cli.report import giga

    width = 7 if console.is_terminal and console.width >= WIDE else 6
    yield ("name", "family", "parameters", "MACs", "data set", "citation", "summary")[:width]
    for each in entries:
        row = (
            each.name,
            each.family or "–",
            f"{each.parameters:,}",
            giga(each.macs),
            each.data or "–",
            ", ".join(each.cite) or "–",
            each.summary,
        )
        yield row[:width]


def _table(rows: Iterator[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in next(rows):
        right = name in ("parameters", "MACs")
        table.add_column(
            name, justify="right" if right else "left", no_wrap=right or name in ("name", "family")
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
