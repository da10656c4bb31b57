"""archspec build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option

if TYPE_CHECKING:
    from archspec.loading import Loaded
    from compiler.plan import NetworkPlan


@click.command("build")
@click.argument("spec", metavar="SPEC")
@settings_option
@allow_modules
@json_option
@click.option(
    "--emit",
    "emitted",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the network as a Python file that imports torch alone.",
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
    gradients against stored activations, in float32 and float64. Exit code 1 where it fails.
    """
    import json

    from archspec.loading import load
    from compiler.resolve import resolve

    loaded = load(spec, settings, packages)
    plan = resolve(loaded)  # mistakes are told before torch is imported

    import torch

    from archspec.cli.report import print_summary
    from compiler.network import build
    from compiler.summary import summarise
    from compiler.verify import verify

    if emitted is not None:
        _emit(loaded, plan, emitted)
    torch.manual_seed(seed)
    network = build(plan)
    if not no_verify:
        click.echo("verifying on random streams …", err=True)
    verification = None if no_verify else verify(network, seed=seed)
    summary = summarise(network, verification)
    print_summary(summary, to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(summary.as_dict(), ensure_ascii=False, allow_nan=False))
    if summary.verification is not None and not summary.verification["passed"]:
        raise SystemExit(1)


def _emit(loaded: Loaded, plan: NetworkPlan, path: Path) -> None:
    """Write the file; one that archspec has not written stays as it is."""
    from compiler.emission import CannotEmitError, emit
    from compiler.emission.file import MARK

    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise click.UsageError(f"{path} is a file that archspec has not written: not replaced")
        text = emit(plan, loaded.spec)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except (CannotEmitError, OSError) as error:
        raise click.UsageError(f"cannot write {path}: {error}") from None
    click.echo(f"written: {path}; `python {path}` checks it", err=True)
