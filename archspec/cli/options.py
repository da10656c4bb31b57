"""Options that several commands share."""

from __future__ import annotations

import click

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
    metavar="PACKAGE",
    help="A package whose modules the spec may name (`module: package.Class`): its code is run. "
    "May be given several times.",
)
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object; all else goes to standard error.",
)
