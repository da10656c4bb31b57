"""archspec compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from archspec.cli.options import allow_modules, spec_name
from archspec.cli.options import as_json as json_option
from archspec.cli.options import settings as settings_option
from archspec.cli.processes import alone
from archspec.cli.shell import typed
from archspec.cli.training import device as device_option
from archspec.cli.training import told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archspec.study import Study
    from runners.comparison.arms import Arm


@click.command("compare")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", callback=spec_name)
@settings_option
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="PATH=VALUE,VALUE,…",
    help="Try each value of a setting: --sweep constants.gamma=0.5,0.9. Several make a grid.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), help="How many; 3 by default.")
@click.option("--baseline", metavar="NAME", help="Whom others are measured against; the first.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=float,
    help="Tell the epochs and the time to this value of the metric.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The study's folder; studies/NAME by default. What is there is not run again.",
)
@device_option
@click.option("--quiet", is_flag=True, help="No progress bars.")
@allow_modules
@json_option
def command(
    specs: tuple[str, ...],
    settings: tuple[str, ...],
    sweeps: tuple[str, ...],
    seeds: int | None,
    baseline: str | None,
    targets: tuple[float, ...],
    output: Path | None,
    device: str,
    quiet: bool,
    packages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train specs on the same data, with the same budget and seeds, and report what differs.

    SPEC… are specs, or one study: a file that names specs, seeds and a baseline. Given again, the
    same command goes on where it was stopped, and runs only what is missing; with more seeds or
    specs, it adds them. The report is report.html in the output folder, with the same as Markdown
    and JSON beside it.
    """
    import json
    import sys
    from dataclasses import replace

    study = _study(specs, settings)
    study = replace(
        study,
        seeds=seeds or study.seeds,
        baseline=baseline or study.baseline,
        targets=targets or study.targets,
    )

    from runners.comparison.arms import baseline_of, open_arms, parse_sweep

    arms = open_arms(study, [parse_sweep(text) for text in sweeps], packages)
    against = baseline_of(study, arms)
    folder = output or Path("studies") / study.name

    from runners.comparison.earlier import check_report
    from runners.comparison.fairness import check_same_test, check_same_training
    from runners.comparison.inversions import inversions
    from runners.comparison.pages import findings, write_report
    from runners.comparison.report import report
    from runners.comparison.study import run_study

    _check_targets(study, arms)
    if not alone():
        raise click.UsageError("a comparison trains in one process, and not with torchrun")
    check_same_test(arms)
    check_report(arms, study.seeds, against, folder)
    for warning in check_same_training(arms):
        click.echo(f"warning: {warning}", err=True)

    with told(folder):
        measured = run_study(
            arms, study.seeds, folder, device=device, quiet=quiet, tell=_silent if quiet else _tell
        )
    line = typed(sys.argv[1:])
    back = inversions(measured, folder)
    rows = {label: one.inversion for label, one in back.items()}
    found = report(study, against, measured, line, rows)
    page = write_report(found, folder, {label: one.strip for label, one in back.items()})
    for sentence in findings(found):
        click.echo(sentence, err=as_json)
    click.echo(f"the report is {page}", err=as_json)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    if not any(row.runs for row in found.rows):
        raise SystemExit(1)


def _check_targets(study: Study, arms: Sequence[Arm]) -> None:
    """Accuracies are shares. Raises `click.UsageError`."""
    for target in study.targets:
        of_classes = all("classes" in arm.loaded.spec.task.sizes for arm in arms)
        if of_classes and not 0 < target <= 1:
            hint = f"; {target:g}% is {target / 100:g}" if 1 < target <= 100 else ""
            raise click.UsageError(f"an accuracy is from 0 to 1, and the target {target:g}{hint}")


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _silent(line: str) -> None:
    del line


def _study(specs: tuple[str, ...], settings: tuple[str, ...]) -> Study:
    """That of a file, or one of specs by their names. Raises `SpecError`."""
    from dataclasses import replace

    from archspec.finding import find, zoo
    from archspec.loading import is_study, read_file
    from archspec.study import Entrant, Study, load_study

    if len(specs) == 1:
        shipped = zoo() / "studies" / f"{specs[0]}.yaml"
        path = shipped if shipped.is_file() else find(specs[0], Path.cwd(), None)
        if is_study(read_file(path)):
            study = load_study(path)
            entrants = [replace(e, settings=(*e.settings, *settings)) for e in study.entrants]
            return replace(study, entrants=tuple(entrants))
    paths = [find(name, Path.cwd(), None) for name in specs]
    entrants = [Entrant(path.stem, path, settings) for path in paths]
    return Study("_".join(path.stem for path in paths)[:80], tuple(entrants))
