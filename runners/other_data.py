"""Data for a trained network other than those of its spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from archspec.data import AnyData, ImageFolder, VideoFolder
from archspec.diagnostics import Diagnostic, Source, Span, SpecError
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
    Statistics,
)

OPTION = "--data"
"""What errors call the text."""
KINDS = tuple(kind for model in get_args(AnyData) for kind in kinds_of(model))
FOLDERS = ("image_folder", "video_folder")
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
    return Loaded(validate(Spec, tree), tree, loaded.packages)


def _entry(loaded: Loaded, text: str) -> Node:
    """The text as the tree of a data set."""
    span = Span(Source(OPTION, text), 0, 0, max(1, len(text)))
    if text in KINDS or not _is_path(text):
        return read(text, OPTION)
    if not Path(text).is_dir():
        help = f"or a data set: {', '.join(KINDS)}"
        raise SpecError([Diagnostic("E601", f"there is no folder {text}", span, help)])
    kind = "video_folder" if isinstance(loaded.spec.input, VideoInput) else "image_folder"
    path = Node({"path": Node(text, span)}, span, {"path": span})
    return Node({kind: path}, span, {kind: span})


def _is_path(text: str) -> bool:
    separators = tuple(filter(None, (os.sep, os.altsep)))
    looks_so = any(separator in text for separator in separators)
    return Path(text).is_dir() or (looks_so and "{" not in text and ": " not in text)


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
