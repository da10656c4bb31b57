"""archspec cite."""

from __future__ import annotations

import click

from archspec.cli.options import settings as settings_option
from archspec.cli.options import spec_argument


@click.command("cite")
@spec_argument
@settings_option
def command(spec: str, settings: tuple[str, ...]) -> None:
    """Print the BibTeX of the papers that a spec and its couplings come from.

    Keys of your own, whose papers archspec does not know, are named on standard error.
    """
    from archspec.cited import cited, unknown
    from archspec.loading import load

    loaded = load(spec, settings)
    papers, others = cited(loaded), unknown(loaded)
    for each in others:
        click.echo(f"left out: {each}", err=True)
    if not papers and not others:
        click.echo(f"{spec} cites nothing", err=True)
    click.echo("".join(f"{paper.bibtex(key)}\n" for key, paper in papers.items()), nl=False)
