"""The network of a run, as training has left it in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded, load
from runners.run_folder import RunFolder, identity
from runners.start import take
from runners.train import build_model, recipe_and_data
from runners.weights import epoch_of

Which = Literal["best", "last"]
"""Of the epoch that validation chose, or of the last one."""
WHICH: tuple[Which, ...] = ("best", "last")
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
    """Build the network of a run, with weights of its folder. `packages` are those whose modules
    the spec may name.

    Raises `SpecError` where the folder is no run (E604), has no such weights yet (E604), or
    weights of another network (E606); and what `build` raises.
    """
    folder = RunFolder(path)
    _check_run(folder)
    weights = folder.best if which == "best" else folder.last
    _check_there(folder, weights)
    loaded = load(str(folder.spec), allow_modules=packages)
    recipe_and_data(loaded)
    model = build_model(loaded)
    if (problem := take(weights, model)) is not None:
        help = f"weights go with the spec that they were trained by: {folder.spec}"
        raise SpecError([Diagnostic("E606", f"{weights} {problem}", None, help)])
    return Trained(folder, loaded, model.eval(), weights, epoch_of(weights))


def _check_run(folder: RunFolder) -> None:
    path = folder.path
    if not path.is_dir():
        what = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise _refusal(f"{what}, where a run is expected", A_RUN)
    for file in (folder.run, folder.spec):
        if not file.is_file():
            raise _refusal(f"{path} is no run: it has no {file.name}", A_RUN)
    try:
        is_run = isinstance(json.loads(folder.run.read_text(encoding="utf-8"))["spec_hash"], str)
    except (OSError, ValueError, KeyError, TypeError):
        is_run = False
    if not is_run:
        raise _refusal(f"{folder.run} is not a run's description", A_RUN)


def _check_there(folder: RunFolder, weights: Path) -> None:
    if weights.is_file():
        return
    if weights == folder.last and folder.best.is_file():
        message = f"the run in {folder.path} is not finished: it has no {weights.name} yet"
        raise _refusal(message, "`--weights best` takes those of its best epoch so far")
    message = f"the run in {folder.path} has not finished an epoch: it has no {weights.name}"
    raise _refusal(message, "train on: the command that began the run goes on with it")


def _refusal(message: str, help: str) -> SpecError:
    return SpecError([Diagnostic("E604", message, None, help)])
