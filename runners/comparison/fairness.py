"""Whether networks can be compared: tested on the same data, and trained on as much of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archspec.data import FakeImages, SparseCodes
from archspec.diagnostics import Diagnostic, SpecError
from archspec.dumping import scalar_text
from archspec.loading import Loaded
from runners.comparison.arms import Arm
from runners.train import recipe_and_data

OF_TRAINING = frozenset({"validation", "augment", "repeat"})
"""What data says of training alone."""
OF_READING = frozenset({"workers", "root", "download", "strict", "mean", "std", "every"})
"""How the samples are read, whichever they are."""
CHANGES_NOTHING = frozenset({"workers", "download"})
OF_THE_MACHINE = frozenset({"seed", "watch", "compile", "parallel"})
"""What recipes say that is no part of the training that weights are given."""


def check_same_test(arms: Sequence[Arm]) -> None:
    """Refuse networks whose test sets differ: their metrics say nothing of each other. Raises
    `SpecError`."""
    first = arms[0]
    for arm in arms:
        others = _differences(_tested_on(arm.loaded), _tested_on(first.loaded))
        if others:
            message = f"{arm.label} and {first.label} are tested on different data: {others}"
            help = "compare networks that have one test set, and others in a study of their own"
            span = arm.loaded.tree.where(("data",))
            raise SpecError([Diagnostic("E602", message, span, help)])


def check_same_training(arms: Sequence[Arm]) -> list[str]:
    """What makes a comparison unfair, a sentence for each network: other data, other budgets."""
    first, said = arms[0], []
    for arm in arms[1:]:
        others = _differences(_trained_on(arm.loaded), _trained_on(first.loaded))
        if others:
            said.append(f"{arm.label} and {first.label} differ in {others}")
    return said


def _tested_on(loaded: Loaded) -> dict[str, Any]:
    """What decides which samples the test set has, by paths of the spec. Raises `SpecError`."""
    _, entry = recipe_and_data(loaded)
    found = {"data": entry.kind} | _of_data(loaded, OF_TRAINING | OF_READING)
    path = f"data.{entry.kind}.path"
    if path in found:
        found[path] = os.path.realpath(found[path])
    if isinstance(entry, (FakeImages, SparseCodes)):  # made to the network's measure
        found |= loaded.spec.model_dump(mode="json", include={"input", "task"})
    return found


def _trained_on(loaded: Loaded) -> dict[str, Any]:
    """Data and budget, by paths of the spec. Raises `SpecError`."""
    recipe, _ = recipe_and_data(loaded)
    trained = recipe.model_dump(mode="json", exclude=set(OF_THE_MACHINE))
    return _of_data(loaded, CHANGES_NOTHING) | {f"train.{key}": v for key, v in trained.items()}


def _of_data(loaded: Loaded, without: frozenset[str]) -> dict[str, Any]:
    data = loaded.spec.model_dump(mode="json", include={"data"})["data"]
    return {
        f"data.{kind}.{key}": value
        for kind, entry in data.items()
        for key, value in entry.items()
        if key not in without
    }


def _differences(mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The paths whose values differ, with the values where they are short."""
    return ", ".join(_told(mine, others))


def _told(mine: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    for path in {**mine, **others}:
        if path not in mine or path not in others:
            yield path
        elif mine[path] != others[path]:
            pair = (mine[path], others[path])
            short = not any(isinstance(value, (list, dict)) for value in pair)
            yield f"{path} ({' and '.join(map(scalar_text, pair))})" if short else path
