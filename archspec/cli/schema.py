"""archspec schema."""

from __future__ import annotations

import click


@click.command("schema")
@click.option("--coupling", is_flag=True, help="The schema of coupling files instead.")
def command(coupling: bool) -> None:
    """Print the JSON schema (draft 7) of spec files, for editors.

    The first line of a spec names it:

    # yaml-language-server: $schema=path/to/archspec-1.json
    """
    import json

    from archspec.json_schema import coupling_schema, spec_schema

    schema = coupling_schema() if coupling else spec_schema()
    click.echo(json.dumps(schema, indent=2, ensure_ascii=False))
