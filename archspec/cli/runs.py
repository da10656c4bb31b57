"""What commands share that take a run: its folder, which weights, and what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from runners.trained import Trained, Which

run_argument = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
weights = click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Of the epoch that validation chose, or of the last one.",
)


class Refused(click.ClickException):
    """What was asked for cannot be; the command itself was written right."""

    exit_code = 2


@contextmanager
def told() -> Iterator[None]:
    """Says why a trained network could not be used: exit code 1 where it cannot go on, 2 for a
    mistake of a module of the user's own."""
    from compiler.exact import RangeError
    from compiler.user_modules import UserModuleError
    from runners.errors import TrainingError

    try:
        yield
    except (TrainingError, RangeError) as error:
        raise click.ClickException(str(error)) from None
    except UserModuleError as error:
        raise Refused(str(error)) from None


def opened(run: Path, which: Which, packages: tuple[str, ...]) -> Trained:
    """The network of a run. Warns of a spec that was edited since."""
    from runners.trained import open_trained

    trained = open_trained(run, which, packages)
    if not trained.is_as_begun:
        click.echo(
            f"warning: {trained.folder.spec} is not the spec that the run was begun with, by the "
            f"hash in {trained.folder.run.name}",
            err=True,
        )
    return trained
