"""What commands that train share: the device, and how a training ends that is not finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from archspec.cli.processes import is_first, leave_it_to_the_first

device = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Where: auto, cpu, cuda, cuda:1 or mps.",
)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Says why a training in `folder` has ended: exit code 1 where it could not go on, 2 for a
    mistake of a module of the user's own, 130 where it was interrupted."""
    from compiler.engine import ReplayError
    from compiler.user_modules import UserModuleError
    from runners.errors import TrainingError, TrainingStopped

    try:
        yield
    except TrainingError as error:
        leave_it_to_the_first()  # which has met most of them too
        hint = f"to change the spec, remove {folder} or choose another folder with --output"
        raise click.ClickException(f"{error}\n{hint}") from None
    except ReplayError as error:
        message = f"a residual function cannot be trained with its backward strategy: {error}"
        raise click.ClickException(message) from None
    except UserModuleError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except TrainingStopped as stopped:
        where = f"stopped by {stopped.signal.name} after {stopped.where}"
        if is_first():
            click.echo(f"{where}; the same command goes on from there in {folder}", err=True)
        raise SystemExit(128 + stopped.signal) from None
    except KeyboardInterrupt:
        where = "stopped; the same command goes on from the last checkpoint"
        click.echo(f"{where} in {folder}", err=True)
        raise SystemExit(130) from None
