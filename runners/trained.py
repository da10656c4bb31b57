"""The network of a run, as training has left it in the run's folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded, load
from runners.run_folder import RunFolder, identity
from runners.start import UNREADABLE, take
from runners.train import build_model, recipe_and_data
from runners.weights import epoch_of

Which = Literal["best", "last"]
"""Of the epoch that validation chose, or of the last one."""
WHICH: tuple[Which, ...] = ("best", "last")
RUNS = Path("runs")
"""Where training puts runs that are given no folder."""
MOST_TOLD = 5
"""So many runs are named where a folder is none."""
A_RUN = "`archspec train SPEC --output RUN` makes a run; name its folder"


@dataclass(frozen=True)
class Trained:
    """A trained network and where it is from."""

    folder: RunFolder
    loaded: Loaded
    model: nn.Module
    """On the CPU, in evaluation."""
    weights: Path
    epoch: int | None
    """That the weights are of."""

    @property
    def name(self) -> str:
        return self.loaded.spec.name

    @property
    def is_as_begun(self) -> bool:
        """Whether the folder's spec is the one that the run was begun with."""
        begun = json.loads(self.folder.run.read_text(encoding="utf-8"))
        return bool(begun["spec_hash"] == identity(self.loaded.spec).spec)


def open_trained(path: Path, which: Which = "best", packages: Sequence[str] = ()) -> Trained:
    """Build the network of a run, with weights of its folder, or for a NAME that is no path here of
    runs/NAME. `packages` are those whose modules the spec may name.

    Raises `SpecError` where the folder is no run (E604), has no such weights yet (E604), or
    weights of another network (E606); and what `build` raises.
    """
    folder = RunFolder(_found(path))
    _check_run(folder)
    weights = folder.best if which == "best" else folder.last
    _check_there(folder, weights)
    loaded = load(str(folder.spec), allow_modules=packages)
    recipe_and_data(loaded)
    model = build_model(loaded)
    if (problem := take(weights, model)) is not None:
        help = f"weights go with the spec that they were trained by: {folder.spec}"
        if problem.startswith(UNREADABLE):
            other = next(each for each in WHICH if each != which)
            help = f"the file is damaged; `--weights {other}` takes the others"
        raise SpecError([Diagnostic("E606", f"{weights} {problem}", None, help)])
    return Trained(folder, loaded, model.eval(), weights, epoch_of(weights))


def _found(path: Path) -> Path:
    """The folder where training puts a run of this name, where the name itself is no path."""
    is_name = path.parent == Path() and not path.exists()
    return RUNS / path if is_name and (RUNS / path).is_dir() else path


def _check_run(folder: RunFolder) -> None:
    path = folder.path
    if not path.is_dir():
        what = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise _refusal(f"{what}, where a run is expected", _runs_by_name(path))
    for file in (folder.run, folder.spec):
        if not file.is_file():
            raise _refusal(f"{path} is no run: it has no {file.name}", _runs_within(path))
    try:
        is_run = isinstance(json.loads(folder.run.read_text(encoding="utf-8"))["spec_hash"], str)
    except (OSError, ValueError, KeyError, TypeError):
        is_run = False
    if not is_run:
        raise _refusal(f"{folder.run} is not a run's description", A_RUN)


def _runs_within(path: Path) -> str:
    """A help text with the runs of a folder, or else the one of its name in `runs`."""
    if found := runs_in(path):
        more = f" and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
        return f"runs in it, the latest first: {_listed(found[:MOST_TOLD])}{more}"
    if RunFolder(path).result.is_file():
        return f"the run is finished: remove {path}, and train anew"
    if RunFolder(path).run.is_file():
        return "its other files are there: `archspec train` with its spec writes it anew"
    named = [run for run in runs_in(RUNS) if run.name == path.name]
    return f"there is a run in {_listed(named)}" if named else A_RUN


def _runs_by_name(path: Path) -> str:
    """A help text with the runs, beside a path and in `runs`, whose names are near to its own."""
    names = {run.name: run for run in (*runs_in(RUNS), *runs_in(path.parent))}
    near = difflib.get_close_matches(path.name, names, n=MOST_TOLD)
    return f"did you mean {_listed([names[name] for name in near])}?" if near else A_RUN


def runs_in(folder: Path) -> list[Path]:
    """The runs that lie in a folder, the latest first: a run's folder changes with each epoch."""
    try:
        found = [path for path in folder.iterdir() if RunFolder(path).run.is_file()]
        return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))
    except OSError:  # no folder, or one that may not be read
        return []


def _listed(runs: Sequence[Path]) -> str:
    return ", ".join(map(str, runs))


def _check_there(folder: RunFolder, weights: Path) -> None:
    if weights.is_file():
        return
    if folder.result.is_file():
        message = f"the run in {folder.path} is finished, and its {weights.name} is gone"
        raise _refusal(message, f"remove {folder.path}, and train anew")
    if weights == folder.last and folder.best.is_file():
        message = f"the run in {folder.path} is not finished: it has no {weights.name} yet"
        raise _refusal(message, "`--weights best` takes those of its best epoch so far")
    message = f"the run in {folder.path} has not finished an epoch: it has no {weights.name}"
    raise _refusal(message, "train on: the command that began the run goes on with it")


def _refusal(message: str, help: str) -> SpecError:
    return SpecError([Diagnostic("E604", message, None, help)])
