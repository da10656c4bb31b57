"""Data for a trained network other than those of its spec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from archspec.data import AnyData, ImageFolder, ImageNet, VideoFolder
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
from runners.folders import Statistics, grey

OPTION = "--data"
"""What errors call the text."""
KINDS = tuple(kind for model in get_args(AnyData) for kind in kinds_of(model))
FOLDERS = ("image_folder", "video_folder")
TRAINED_ON = ("augment", "repeat")
"""Keys of data that samples of other splits than the one for training do not depend on."""
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

    Files of a folder are read and normalised as the network's own were, where the text does not
    say otherwise: that is a part of the function that was trained. Raises `SpecError`.
    """
    entry = _read_alike(loaded, _entry(loaded, text))
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


def _read_alike(loaded: Loaded, entry: Node) -> Node:
    """With what the spec says of its own data, where the entry is a folder and does not say it."""
    if len(entry.map) != 1:
        return entry
    ((kind, content),) = entry.map.items()
    if kind not in FOLDERS:
        return entry
    if not content.map:  # `image_folder: PATH`
        at = content.span
        content = Node({"path": content}, at, {"path": at})
    for name, value in _known(loaded, kind).items():
        if name not in content.map:
            content = content.with_entry(name, value, content.span)
    return Node({kind: content}, entry.span, entry.keys)


def _known(loaded: Loaded, kind: str) -> dict[str, Node]:
    """All but its path, of a folder of the same kind; else the `mean` and `std` that a data set
    has, or a folder's spec says."""
    entry = loaded.spec.data
    own = loaded.tree.map["data"].map.get(kind)
    if own is not None and own.map:
        return {name: value for name, value in own.map.items() if name not in TRAINED_ON}
    if isinstance(entry, (ImageFolder, VideoFolder)):
        is_said = {"mean", "std"} & entry.model_fields_set
        statistics = (entry.mean, entry.std) if is_said else None
    else:
        statistics = None if entry is None else STATISTICS.get(entry.kind)
    if statistics is None:
        return {}
    if loaded.spec.input.shape.sizes[0] == 1 < len(statistics[0]):
        statistics = grey(statistics)
    known = dict(zip(("mean", "std"), map(node_of, statistics), strict=True))
    if isinstance(entry, ImageNet) and kind == "image_folder":
        known["centre"] = node_of(entry.centre)
    return known
