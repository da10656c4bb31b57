"""What the inverses of a study's trained networks give back of test images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from archspec.diagnostics import SpecError
from compiler.network import Network
from runners.as_data import as_data
from runners.comparison.study import Measured, run_folder
from runners.data import open_data
from runners.errors import TrainingError
from runners.inversion import SHOWN, Inversion, Strip, Trips, invert_images
from runners.train import recipe_and_data
from runners.trained import open_trained

LOG = logging.getLogger("archspec")
FAILURES = (SpecError, TrainingError, RuntimeError, OSError)
"""For which a report goes without: of networks without an inverse, and data that are gone."""


@dataclass(frozen=True)
class ThereAndBack:
    """Of one network, trained with its first seed."""

    inversion: Inversion
    strip: Strip


def inversions(measured: Sequence[Measured], output: Path) -> Mapping[str, ThereAndBack]:
    """Of the networks of a study in this folder whose first stage has an inverse, by label."""
    found = {}
    for one in measured:
        if one.runs:
            try:
                found[one.arm.label] = _inverted(one, output)
            except FAILURES as error:
                if not isinstance(error, SpecError):  # else it has no inverse, or no images
                    LOG.warning("%s: no images went there and back: %s", one.arm.label, error)
    return found


def _inverted(one: Measured, output: Path) -> ThereAndBack:
    folder = run_folder(output, one.arm, one.runs[0].seed)
    trained = open_trained(folder.path, packages=one.arm.loaded.packages)
    recipe, entry = recipe_and_data(trained.loaded)
    with closing(open_data(trained.loaded, entry, recipe.seed)) as data:
        few = as_data(trained.loaded, data.test, SHOWN)
    assert isinstance(trained.model, Network)
    return ThereAndBack(*invert_images(trained.model, few, Trips()))
