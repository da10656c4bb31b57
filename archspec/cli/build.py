"""archspec build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, spec_argument
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option

if TYPE_CHECKING:
    from archspec.loading import Loaded
    from compiler.plan import NetworkPlan
    from compiler.summary import Summary


@click.command("build")
@spec_argument
@settings_option
@allow_modules
@json_option
@click.option(
    "--emit",
    "emitted",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the network as a Python file that imports torch alone, once it is verified.",
)
@click.option("--no-verify", is_flag=True, help="Leave out the measured round trip and gradients.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the weights and of the verification.",
)
def command(
    spec: str,
    settings: tuple[str, ...],
    packages: tuple[str, ...],
    as_json: bool,
    emitted: Path | None,
    no_verify: bool,
    seed: int,
) -> None:
    """Check, compile and verify a spec, and print what it costs.

    Verification runs each stage on random streams: the round trip through the derived inverse, and
    gradients against stored activations, in float32 and float64; where coefficients change over
    training, at its start and at its end. Exit code 1 where it fails.
    """
    import json

    from archspec.loading import load
    from compiler.resolve import resolve

    loaded = load(spec, settings, packages)
    plan = resolve(loaded)  # mistakes are told before torch is imported

    # Before the work of verifying: what would keep the file from being written.
    text = None if emitted is None else _emitted(loaded, plan, emitted)
    summary = _summary(plan, seed, no_verify, emitted)

    from archspec.cli.report import print_summary

    print_summary(summary, to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(summary.as_dict(), ensure_ascii=False, allow_nan=False))
    if summary.verification is not None and not summary.verification["passed"]:
        _say_not_written(emitted)
        raise SystemExit(1)
    if emitted is not None and text is not None:
        _write(text, emitted)
        _say_left_out(plan)


def _summary(plan: NetworkPlan, seed: int, no_verify: bool, emitted: Path | None) -> Summary:
    """Build and measure. What cannot be measured ends with exit code 1, and a module of the user's
    own that cannot be made with 2."""
    import torch

    from compiler.engine import ReplayError
    from compiler.exact import RangeError
    from compiler.network import build
    from compiler.summary import summarise
    from compiler.user_modules import UserModuleError
    from compiler.verify import VerificationError, verify

    try:
        torch.manual_seed(seed)
        network = build(plan)
        if not no_verify:
            click.echo("verifying on random streams …", err=True)
        return summarise(network, None if no_verify else verify(network, seed=seed))
    except UserModuleError as error:
        click.echo(f"error: {error}", err=True)
        _say_not_written(emitted)
        raise SystemExit(2) from None
    except (VerificationError, ReplayError, RangeError) as error:
        click.echo(f"error: {error}", err=True)
        _say_not_written(emitted)
        raise SystemExit(1) from None


def _say_not_written(path: Path | None) -> None:
    if path is not None:
        click.echo(f"not written: {path}; --no-verify writes what is not verified", err=True)


def _say_left_out(plan: NetworkPlan) -> None:
    from compiler.emission import left_out

    for note in left_out(plan):
        click.echo(f"note: {note}", err=True)


def _emitted(loaded: Loaded, plan: NetworkPlan, path: Path) -> str:
    """The text of the file. One that archspec has not written, or that was edited, is to stay."""
    from compiler.emission import CannotEmitError, emit, is_as_emitted
    from compiler.user_modules import UserModuleError

    try:
        if path.exists() and not is_as_emitted(path.read_text(encoding="utf-8", errors="replace")):
            raise click.UsageError(
                f"{path} is a file that archspec has not written, or that was changed since: not "
                "replaced"
            )
        return emit(plan, loaded.spec)
    except (CannotEmitError, UserModuleError) as error:
        raise click.UsageError(f"cannot write {path}: {error}") from None
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write(text: str, path: Path) -> None:
    """Write the file whole or not at all."""
    import os
    import tempfile

    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from None
    click.echo(f"written: {path}; `python {path}` checks it", err=True)


def _cannot_write(path: Path, error: OSError) -> click.UsageError:
    """Told by the path that the user gave, not by that of a temporary file."""
    return click.UsageError(f"cannot write {path}: {error.strerror or error}")


def _umask() -> int:
    """The process's, which can only be read by setting it."""
    import os

    mask = os.umask(0o077)
    os.umask(mask)
    return mask
