"""The command line: a thin layer over the compiler and the runners.

Nothing heavy is imported before a command needs it, so that `archspec --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from archspec import __version__
from archspec.cli.processes import alone, end, is_first, leave_it_to_the_first
from archspec.diagnostics import SpecError

COMMANDS = {
    "build": "Check, compile and verify a spec, and print what it costs.",
    "drift": "Plot how far streams drift on the way back, measured and predicted.",
    "profile": "Say what a spec costs to train, in memory and time, and what fits.",
    "train": "Train a spec on its data.",
    "evaluate": "Measure the network of a run on its test set, or on other data.",
    "sample": "Draw images from the density of a run.",
    "invert": "Encode images by the density of a run, and decode them again.",
    "export": "Write the network of a run for other programs: weights, PyTorch, ONNX, Python.",
    "compare": "Train specs with the same data and seeds, and report what differs.",
    "convert": "Write published weights for a spec to start from.",
    "check": "Parse, resolve and check specs without building them.",
    "show": "Print a spec, and draw one of its layers.",
    "new": "Write a spec of your own to start from.",
    "list": "List the shipped specs, and what each costs.",
    "cite": "Print the BibTeX of what a spec comes from.",
    "schema": "Print the JSON schema of specs, for editors.",
    "explain": "Say at length what an error means.",
}


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _drop_output() -> None:
    """What is still held back goes nowhere; Python would try to write it once more as it ends."""
    with suppress(OSError, ValueError):  # there is no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_utf8() -> None:
    """Files and pipes get UTF-8 on every system, whose own encoding may lack what is printed. A
    terminal takes all characters as it is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8")


class Commands(click.Group):
    """Finds each command in the module of its name, when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"archspec.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Offers the nearest command for an unknown one."""
        from archspec.diagnostics import nearest

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"there is no command `{args[0]}`; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line for each command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line. A disk or a device that takes no more ends it with exit code 1."""
        _write_utf8()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if error.filename is None:
                _drop_output()
            what = "cannot write" if error.filename is None else error.filename
            click.echo(f"error: {what}: {error.strerror}", err=True)
            raise SystemExit(1) from None
        except SystemExit as over:
            if not alone():
                end(over.code if isinstance(over.code, int) else 0)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. A mistake in a spec is told in full and ends with exit code 2."""
        try:
            return super().invoke(ctx)
        except SpecError as error:
            codes = dict.fromkeys(diagnostic.code for diagnostic in error.diagnostics)
            if is_first():
                click.echo(f"{error}\nfor more: archspec explain {' '.join(codes)}", err=True)
            leave_it_to_the_first()
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="archspec")
def main() -> None:
    """Reversible deep networks from a page of YAML.

    SPEC is a file, or the name of a shipped spec such as momrev_vit_digits.
    """
    # Read by torch when it is imported. Threads that spin while they wait make a small network ten
    # times slower on a machine that is doing something else too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
