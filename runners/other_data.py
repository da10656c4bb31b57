"""Data for a trained network other than those of its spec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from archspec.data import AnyData, ImageFolder, VideoFolder
from archspec.diagnostics import Diagnostic, Source, Span, SpecError, nearest
from archspec.dumping import node_of
from archspec.loading import Loaded
from archspec.onekey import kinds_of
from archspec.spec import Spec, VideoInput
from archspec.tree import Node, read
from archspec.validation import validate
from runners.datasets import (
    CIFAR10_STATISTICS,
    CIFAR100_STATISTICS,
    DIGITS,
    IMAGENET_STATISTICS,
    NOISE_STATISTICS,
)
from runners.folders import Statistics

OPTION = "--data"
"""What errors call the text."""
KINDS = tuple(kind for model in get_args(AnyData) for kind in kinds_of(model))
FOLDERS = ("image_folder", "video_folder")
_SETTING = re.compile(r"--set data\.(\w+)\.\w+=FOLDER")
"""How help that is written for training says where data are."""
STATISTICS: Mapping[str, Statistics] = {
    "digits": DIGITS,
    "cifar10": CIFAR10_STATISTICS,
    "cifar100": CIFAR100_STATISTICS,
    "imagenet": IMAGENET_STATISTICS,
    "fake": NOISE_STATISTICS,
}
"""What the images of each data set are normalised by."""


def with_data(loaded: Loaded, text: str) -> Loaded:
    """A spec with other data: a folder of images or videos, or a data set as specs write it
    (`digits`, `{cifar10: ../data}`).

    Files of a folder are normalised as the network's own images were, where the text does not say
    otherwise: that is a part of the function that was trained. Raises `SpecError`.
    """
    entry = _normalised_alike(loaded, _entry(loaded, text))
    tree = loaded.tree.with_entry("data", entry, entry.span)
    with of_trained(Loaded(loaded.spec, tree, loaded.packages)):
        return Loaded(validate(Spec, tree), tree, loaded.packages)


@contextmanager
def of_trained(loaded: Loaded) -> Iterator[None]:
    """Words what is wrong with data for a network that is trained: its input and its task stay what
    they are, and it is `--data` that names other data."""
    try:
        yield
    except SpecError as error:
        raise SpecError(_of_trained(found, loaded) for found in error.diagnostics) from None


def _of_trained(found: Diagnostic, loaded: Loaded) -> Diagnostic:
    spec, tree = loaded.spec, loaded.tree
    if found.span in (tree.where(("input",)), tree.where(("task",))):
        classes = spec.task.sizes.get("classes")
        task = spec.task.kind if classes is None else f"{classes} classes"
        help = f"this network was trained on {spec.input.shape} with {task}: choose data like those"
        return replace(found, span=tree.where(("data",)), help=help)
    return replace(found, help=_SETTING.sub(rf"{OPTION} '{{\1: FOLDER}}'", found.help))


def _entry(loaded: Loaded, text: str) -> Node:
    """The text as the tree of a data set."""
    span = Span(Source(OPTION, text), 0, 0, max(1, len(text)))
    is_folder = Path(text).is_dir()
    if text in KINDS or (not is_folder and _is_map(text)):
        return read(text, OPTION)
    if not is_folder:
        message = f"there is no folder {text}, and no data set of that name"
        raise SpecError([Diagnostic("E601", message, span, nearest(text, KINDS))])
    kind = "video_folder" if isinstance(loaded.spec.input, VideoInput) else "image_folder"
    path = Node({"path": Node(text, span)}, span, {"path": span})
    return Node({kind: path}, span, {kind: span})


def _is_map(text: str) -> bool:
    return "{" in text or ": " in text


def _normalised_alike(loaded: Loaded, entry: Node) -> Node:
    """With the `mean` and `std` of the spec's own data, where the entry is a folder without."""
    known, spec_data = _statistics(loaded.spec.data), entry.map
    if known is None or len(spec_data) != 1:
        return entry
    ((kind, content),) = spec_data.items()
    if kind not in FOLDERS:
        return entry
    if not content.map:  # `image_folder: PATH`
        at = content.span
        content = Node({"path": content}, at, {"path": at})
    for name, values in zip(("mean", "std"), known, strict=True):
        if name not in content.map:
            content = content.with_entry(name, node_of(values), content.span)
    return Node({kind: content}, entry.span, entry.keys)


def _statistics(entry: AnyData | None) -> Statistics | None:
    """What a spec says, or its data set has; None where nothing else than a default is known."""
    if isinstance(entry, (ImageFolder, VideoFolder)):
        is_said = {"mean", "std"} & entry.model_fields_set
        return (entry.mean, entry.std) if is_said else None
    return None if entry is None else STATISTICS.get(entry.kind)
