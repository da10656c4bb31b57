"""archspec cite."""

from __future__ import annotations

import click

from archspec.cli.options import settings as settings_option


@click.command("cite")
@click.argument("spec", metavar="SPEC")
@settings_option
def command(spec: str, settings: tuple[str, ...]) -> None:
    """Print the BibTeX of the papers that a spec and its couplings come from."""
    from archspec.cited import cited
    from archspec.loading import load

    papers = cited(load(spec, settings))
    if not papers:
        click.echo(f"{spec} cites nothing", err=True)
    click.echo("".join(f"{paper.bibtex(key)}\n" for key, paper in papers.items()), nl=False)
