"""Folders of a class each, in a folder for each split."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torchvision.datasets import DatasetFolder

from archspec import data
from archspec.diagnostics import Diagnostic, Span, SpecError
from archspec.loading import Loaded

AnyFolder = data.ImageFolder | data.VideoFolder
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of values in [0, 1]."""
MOST_NAMED = 5


def class_names(directory: str | Path) -> list[str]:
    """The classes of a split, in the order of their labels."""
    folders = (entry.name for entry in os.scandir(directory) if entry.is_dir())
    return sorted(name for name in folders if not name.startswith("."))


class ClassFolders(DatasetFolder):  # type: ignore[misc]  # torchvision is not typed
    """Files by class; hidden folders, such as those of notebooks, are none."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the classes, and the label of each."""
        if not (names := class_names(directory)):
            raise FileNotFoundError(f"there is no folder of a class in {directory}")
        return names, {name: label for label, name in enumerate(names)}


@dataclass(frozen=True)
class Splits:
    """The files of each split, in the same classes."""

    train: DatasetFolder
    test: DatasetFolder
    validation: DatasetFolder | None
    """Where the folder has one; else it is cut from `train`."""


def open_splits(loaded: Loaded, entry: AnyFolder, noun: str, extensions: tuple[str, ...]) -> Splits:
    """`train`, and `val` and `test`; a `val` alone is the test set. Raises `SpecError`."""
    span = loaded.tree.where(("data", entry.kind, "path"))
    root = Path(entry.path)
    held_out = [name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not held_out:
        missing = "train" if not (root / "train").is_dir() else "test (or val)"
        message = f"there is no folder {root / missing}"
        help = (
            f"{noun} are looked for in train/<class>/* and test/<class>/* of this path; name the "
            f"folder where yours are: --set data.{entry.kind}.path=FOLDER"
        )
        raise SpecError([Diagnostic("E601", message, span, help)])
    train, test, *more = (
        _of_split(root / part, noun, extensions, span) for part in ("train", *held_out)
    )
    for name, other in zip(held_out, (test, *more), strict=True):
        if train.classes != other.classes:
            message = f"in {root} {_lack('train', train, name, other)}"
            raise SpecError([Diagnostic("E602", message, span)])
    return Splits(train, test, more[0] if more else None)


def open_held_out(
    loaded: Loaded, entry: AnyFolder, noun: str, extensions: tuple[str, ...]
) -> Splits:
    """As `open_splits`; where there is nothing to train on, the samples for the test stand in its
    place. Raises `SpecError`."""
    root = Path(entry.path)
    held_out = [name for name in ("test", "val") if (root / name).is_dir()]
    train = root / "train"
    has_train = train.is_dir() and any(entry.is_dir() for entry in train.iterdir())
    if has_train or not held_out:
        return open_splits(loaded, entry, noun, extensions)
    span = loaded.tree.where(("data", entry.kind, "path"))
    test = _of_split(root / held_out[0], noun, extensions, span)
    return Splits(test, test, test)


OpenFolders = Callable[[Loaded, AnyFolder, str, tuple[str, ...]], Splits]
"""From a spec's data, what its files are called and their endings."""


def _of_split(
    folder: Path, noun: str, extensions: tuple[str, ...], span: Span | None
) -> DatasetFolder:
    try:
        return ClassFolders(str(folder), loader=str, extensions=extensions)
    except FileNotFoundError as error:  # a class without files, among others
        message = f"cannot read {folder}: {str(error).split('. ')[0]}"
        help = f"each class has a folder of its own, with {noun} in it: {', '.join(extensions)}"
        raise SpecError([Diagnostic("E601", message, span, help)]) from None
    except OSError as error:
        message = f"cannot read {folder}: {error}"
        raise SpecError([Diagnostic("E601", message, span)]) from None


def _lack(name: str, here: DatasetFolder, other: str, there: DatasetFolder) -> str:
    """Which classes each of two splits has alone."""
    parts = []
    for one, two, odd in (
        (other, name, sorted(set(here.classes) - set(there.classes))),
        (name, other, sorted(set(there.classes) - set(here.classes))),
    ):
        if odd:
            more = f" and {len(odd) - MOST_NAMED} more" if len(odd) > MOST_NAMED else ""
            parts.append(f"{one} lacks the classes of {two} {', '.join(odd[:MOST_NAMED])}{more}")
    return ", and ".join(parts)


def unlike(known: Sequence[str], found: Sequence[str]) -> str:
    """The first places in which two lists of classes differ, which do."""
    places = [
        f"class {place} was {one or 'not there'}, and is {other or 'not there'}"
        for place, (one, other) in enumerate(zip_longest(known, found))
        if one != other
    ]
    more = f"; and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
    return "; ".join(places[:MOST_NAMED]) + more


def grey(statistics: Statistics) -> Statistics:
    """Of images in colour, for the same in grey."""
    mean, std = (sum(values) / len(values) for values in statistics)
    return (mean,), (std,)


def statistics_of(loaded: Loaded, entry: AnyFolder, channels: int) -> Statistics:
    """Those that the spec gives, for as many channels. Raises `SpecError`."""
    errors = []
    found: list[tuple[float, ...]] = []
    for name, values in (("mean", entry.mean), ("std", entry.std)):
        if channels == 1 and name not in entry.model_fields_set:
            values = (sum(values) / len(values),)
        if len(values) != channels or (name == "std" and min(values) <= 0):
            wanted = "positive number" if name == "std" else "number"
            message = f"`{name}` needs one {wanted} for each of {channels} channels"
            span = loaded.tree.where(("data", entry.kind, name))
            errors.append(Diagnostic("E602", message, span))
        found.append(values)
    if errors:
        raise SpecError(errors)
    return found[0], found[1]
