"""A study as Pydantic models: which specs are compared, with which seeds and baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from archspec.diagnostics import Diagnostic, Span, SpecError, nearest
from archspec.finding import find
from archspec.loading import SETTING, read_file
from archspec.onekey import Model
from archspec.spec import FileName
from archspec.tree import Node
from archspec.validation import validate

MAX_ARMS = 200
Label = Annotated[str, StringConstraints(pattern=r"^\S(.{0,58}\S)?$")]
Settings = Annotated[tuple[str, ...], Field(strict=False)]


class ArmEntry(Model):
    """One of the networks that are compared."""

    spec: str
    """A shipped spec, one beside the study, or a path from it to a `.yaml` file."""
    set: Settings = ()
    """Settings `path.to.key=value`, as `--set` takes them."""


def _whole(value: object) -> object:
    return {"spec": value} if isinstance(value, str) else value


class StudyFile(Model):
    """A study: the same data, budget and seeds for each spec."""

    archspec: Literal[1]
    study: FileName
    summary: str = ""
    seeds: int = Field(3, ge=1, le=1000)
    """Each spec is trained with the seeds 0, 1, … before this one."""
    baseline: str = ""
    """The label of the spec that others are measured against; the first by default."""
    targets: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """Values of the metric to which epochs and time are told."""
    set: Settings = ()
    """Settings of every spec."""
    specs: dict[Label, Annotated[ArmEntry, BeforeValidator(_whole)]] = Field(
        min_length=1, max_length=MAX_ARMS
    )
    """By the label that each goes by in the report."""


@dataclass(frozen=True)
class Entrant:
    """A spec that is to be compared, by the label it goes by, with settings of its own."""

    label: str
    spec: Path
    settings: tuple[str, ...] = ()
    places: Mapping[str, Span] = field(default_factory=dict)
    """Where settings stand in the study, those that do."""

    def as_written(self, error: Diagnostic) -> Diagnostic:
        """An error in one of the settings, where the study has it."""
        if error.span is None or error.span.source.name != SETTING:
            return error
        place = self.places.get(error.span.source.text)
        return error if place is None else replace(error, span=place)


@dataclass(frozen=True)
class Study:
    """What is compared with what."""

    name: str
    entrants: tuple[Entrant, ...]
    seeds: int = 3
    baseline: str = ""
    """A label; empty where it is the first."""
    targets: tuple[float, ...] = ()
    summary: str = ""


def load_study(path: Path) -> Study:
    """Read a study. Raises `SpecError`."""
    tree = read_file(path)
    file = validate(StudyFile, tree)
    _check_baseline(file, tree)
    entrants = [
        Entrant(
            label,
            _spec_of(tree, label, path.parent),
            (*file.set, *entry.set),
            _places(tree, ("set",), file.set) | _places(tree, ("specs", label, "set"), entry.set),
        )
        for label, entry in file.specs.items()
    ]
    return Study(file.study, tuple(entrants), file.seeds, file.baseline, file.targets, file.summary)


def _places(tree: Node, path: tuple[str, ...], settings: Sequence[str]) -> dict[str, Span]:
    found = {text: tree.where((*path, index)) for index, text in enumerate(settings)}
    return {text: span for text, span in found.items() if span is not None}


def _check_baseline(file: StudyFile, tree: Node) -> None:
    if file.baseline and file.baseline not in file.specs:
        message = f"the baseline `{file.baseline}` is not among the specs"
        help = nearest(file.baseline, file.specs)
        raise SpecError([Diagnostic("E503", message, tree.where(("baseline",)), help)])


def _spec_of(tree: Node, label: str, folder: Path) -> Path:
    node = tree.find(("specs", label))
    node = node.map.get("spec", node)
    name = str(node.value)
    if name.endswith((".yaml", ".yml")):
        if (folder / name).is_file():
            return folder / name
        raise SpecError([Diagnostic("E501", f"there is no file {folder / name}", node.span)])
    return find(name, folder, node.span)
