"""archspec show."""

from __future__ import annotations

import click

from archspec.cli.options import settings as settings_option


@click.command("show")
@click.argument("spec", metavar="SPEC")
@click.option(
    "--resolved",
    is_flag=True,
    help="With all that it inherits written out, and where each value comes from.",
)
@settings_option
def command(spec: str, resolved: bool, settings: tuple[str, ...]) -> None:
    """Print a spec. What is printed loads again."""
    from pathlib import Path

    from archspec.dumping import dump, origin
    from archspec.loading import find, load, ordered

    if resolved or settings:
        click.echo(dump(ordered(load(spec, settings).tree), origin), nl=False)
    else:
        click.echo(find(spec, Path.cwd(), None).read_text(encoding="utf-8-sig"), nl=False)
