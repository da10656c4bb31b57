"""What commands that train share: the device, and how a training ends that is not finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to train.",
)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Says why a training in `folder` has ended: exit code 1 where it could not go on, 2 for a
    mistake of a module of the user's own, 130 where it was interrupted."""
    from compiler.engine import ReplayError
    from compiler.user_modules import UserModuleError
    from runners.errors import TrainingError

    try:
        yield
    except TrainingError as error:
        hint = f"to change the spec, remove {folder} or choose another folder with --output"
        raise click.ClickException(f"{error}\n{hint}") from None
    except ReplayError as error:
        message = f"a residual function cannot be trained with its backward strategy: {error}"
        raise click.ClickException(message) from None
    except UserModuleError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command continues from the last epoch in {folder}", err=True)
        raise SystemExit(130) from None
