"""Running a study: what is missing is trained, what is there is read, and all of it compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from archspec.training import Train
from runners.comparison.arms import Arm
from runners.comparison.costs import Costs, costs
from runners.comparison.curves import Curve, read_curve
from runners.errors import TrainingError
from runners.run_folder import RunFolder, TrainResult, finished, identity, made_on
from runners.tasks import METRICS
from runners.train import recipe_and_data, train


@dataclass(frozen=True)
class Finished:
    """One run."""

    seed: int
    result: TrainResult
    curve: Curve
    made_on: Mapping[str, str] = field(default_factory=dict)
    """Machine and versions."""


@dataclass(frozen=True)
class Measured:
    """An arm with its runs."""

    arm: Arm
    recipe: Train
    costs: Costs
    runs: tuple[Finished, ...]
    failures: Mapping[int, str]
    """Why runs came to no end, by seed."""


def run_folder(output: Path, arm: Arm, seed: int) -> RunFolder:
    """Where a run of a study is."""
    return RunFolder(output / "runs" / arm.folder / f"seed{seed}")


def check_folders(arms: Sequence[Arm], seeds: int, output: Path) -> None:
    """Refuse folders that hold other runs, before any is trained. Raises `SpecError`."""
    for arm in arms:
        recipe_and_data(arm.loaded)
        for seed in range(seeds):
            finished(run_folder(output, arm, seed), identity(arm.seeded(seed).spec))


def run_study(
    arms: Sequence[Arm],
    seeds: int,
    output: Path,
    *,
    device: str = "auto",
    quiet: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Measured, ...]:
    """Train every arm with every seed. Seed by seed, so that a study that is stopped has as many
    runs of each arm. Raises `SpecError` before any training. A run that diverges is noted, and the
    others go on."""
    check_folders(arms, seeds, output)
    done: dict[str, list[Finished]] = {arm.label: [] for arm in arms}
    failed: dict[str, dict[int, str]] = {arm.label: {} for arm in arms}
    for seed in range(seeds):
        for index, arm in enumerate(arms):
            tell(f"{arm.label}, seed {seed} ({seed * len(arms) + index + 1}/{seeds * len(arms)})")
            folder = run_folder(output, arm, seed)
            try:
                result = train(arm.seeded(seed), folder.path, device=device, quiet=quiet)
                curve = read_curve(folder, METRICS[result.metric])
            except TrainingError as error:
                failed[arm.label][seed] = str(error)
            else:
                done[arm.label].append(Finished(seed, result, curve, made_on(folder)))
    return tuple(measured(arm, done[arm.label], failed[arm.label]) for arm in arms)


def measured(arm: Arm, runs: Sequence[Finished], failures: Mapping[int, str]) -> Measured:
    """An arm with its runs, and with what its network costs."""
    recipe, _ = recipe_and_data(arm.loaded)
    return Measured(arm, recipe, costs(arm.loaded, recipe), tuple(runs), failures)
