"""Options that several commands share."""

from __future__ import annotations

import math
import os
import re

import click

_BETWEEN = re.compile(rf"[,\s{re.escape(os.pathsep)}]+")


def _split(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    """The names in texts that may hold several."""
    del context, option
    return tuple(name for text in given for name in _BETWEEN.split(text) if name)


def spec_name(
    context: click.Context, parameter: click.Parameter, given: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """The name of a spec, or of several, with a note where one has two meanings."""
    del context, parameter
    for name in (given,) if isinstance(given, str) else given:
        tell_shadow(name, "", "spec")
    return given


def tell_shadow(name: str, folder: str, what: str) -> None:
    """The note of a name that means a file of this folder, and not what ships under it."""
    from archspec.finding import shadowed

    if file := shadowed(name, folder):
        note = f"note: `{name}` is {file} here, and not the shipped {what} of that name"
        click.echo(note, err=True)


spec_argument = click.argument("spec", metavar="SPEC", callback=spec_name)
settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change one value of the spec: --set train.epochs=5. May be given several times.",
)
allow_modules = click.option(
    "--allow-modules",
    "packages",
    multiple=True,
    envvar="ARCHSPEC_ALLOW_MODULES",
    callback=_split,
    metavar="PACKAGE",
    help="A package whose modules the spec may name (`module: package.Class`): its code is run. "
    "May be given several times, or name several, with commas between.",
)
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object; all else goes to standard error.",
)


def numbers(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Whole numbers from 1 on, with commas between. Raises `click.BadParameter`."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"`{text}`: write numbers as 12,24,48", context, option)
    return tuple(dict.fromkeys(map(int, parts)))


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """What `FloatRange` lets through. Raises `click.BadParameter`."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number to compute with", context, option)
    return value
