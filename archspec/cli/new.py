"""archspec new."""

from __future__ import annotations

import os
from pathlib import Path

import click

from archspec.cli.options import allow_modules, spec_name
from archspec.cli.shell import typed

RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{p}{n}" for p in ("COM", "LPT") for n in range(10))}
"""Of Windows, whatever comes after a dot."""


@click.command("new")
@click.argument("name", metavar="NAME")
@click.option(
    "--from",
    "parent",
    required=True,
    callback=spec_name,
    metavar="SPEC",
    help="The spec to start from: a file, or the name of a shipped one.",
)
@click.option(
    "--extends",
    "extends",
    is_flag=True,
    help="Inherit from it, instead of writing all of it out.",
)
@allow_modules
def command(name: str, parent: str, extends: bool, packages: tuple[str, ...]) -> None:
    """Write NAME.yaml, a spec of your own to start from, into this folder.

    It stands alone: all that the other spec inherits is written out, its coupling's update too,
    each part with a comment. Nothing is overwritten.
    """
    from archspec.cited import with_all_keys
    from archspec.loading import load
    from archspec.starting import extending, written_out
    from compiler.resolve import resolve
    from runners.files import write_text

    path = _path(name)
    loaded = load(parent, (), packages)
    resolve(loaded)  # what is not right is nothing to start from
    if extends:
        text = extending(loaded.tree, name, _inherited(parent))
    else:
        text = written_out(with_all_keys(loaded), name, loaded.spec.name)
    try:
        write_text(path, text)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise click.UsageError(message) from None
    trains = loaded.spec.data is not None and loaded.spec.train is not None
    click.echo(f"written: {path}", err=True)
    for next_command in ("check", "build", "train" if trains else "show"):
        allowed = [part for package in packages for part in ("--allow-modules", package)]
        click.echo(typed([next_command, str(path), *allowed]))


def _path(name: str) -> Path:
    """The file to write. Raises `click.UsageError` for what is no name, or is there already."""
    import re

    from archspec.spec import FILE_NAME

    if name.endswith((".yaml", ".yml")):
        stem = name.rpartition(".")[0]
        raise click.UsageError(f"expected a name, found `{name}`: write `{stem}`")
    if not re.fullmatch(FILE_NAME, name):
        raise click.UsageError(
            f"`{name}` cannot be a name: names begin with a letter or a digit, and have letters, "
            "digits, `_`, `-` and `.`, at most 80 of them"
        )
    if name.endswith(".") or name.partition(".")[0].upper() in RESERVED:
        raise click.UsageError(f"`{name}` cannot be a name: no file of Windows can be called so")
    path = Path(f"{name}.yaml")
    if os.path.lexists(path):  # a link that leads nowhere, too
        raise click.UsageError(f"{path} is there already: not overwritten")
    return path


def _inherited(parent: str) -> str:
    """What `extends` calls a spec. Raises `click.UsageError` where it has no name for it."""
    from archspec.finding import find, zoo

    path = find(parent, Path.cwd(), None).resolve()
    if path.parent not in (Path.cwd().resolve(), zoo().resolve()) or path.suffix != ".yaml":
        raise click.UsageError(
            f"`extends` names a shipped spec, or a .yaml file in this folder, which {parent} is "
            "not: leave out --extends"
        )
    return path.stem
