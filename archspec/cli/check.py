"""archspec check."""

from __future__ import annotations

import click

from archspec.cli.options import allow_modules, spec_name
from archspec.cli.options import settings as settings_option


@click.command("check")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", callback=spec_name)
@settings_option
@allow_modules
def command(specs: tuple[str, ...], settings: tuple[str, ...], packages: tuple[str, ...]) -> None:
    """Parse, resolve and check specs without building them.

    Exit code 0 if all are right, 2 with every mistake otherwise.
    """
    from archspec.diagnostics import Diagnostic, SpecError
    from archspec.loading import load
    from compiler.resolve import resolve

    found: list[Diagnostic] = []
    for name in specs:
        try:
            plan = resolve(load(name, settings, packages))
        except SpecError as error:
            found += error.diagnostics
        else:
            depth = " + ".join(f"{stage.depth}" for stage in plan.stages)
            click.echo(f"{name}: right ({plan.input} → {plan.output}, {depth} layers)")
    if found:
        raise SpecError(found)
