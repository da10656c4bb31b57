"""Files that are always whole: replaced in one step, or left as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it replaces when the block ends without an error.

    It stands in the same folder, since only within one file system is a renaming one step, and has
    a fixed name, so that what a killed process left of it is overwritten by the next.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors writes files that nobody else may read
        sync(partial)  # else the name could reach the disk before the content
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Replace a file by one JSON object."""
    write_text(path, json.dumps(value, indent=2) + "\n")
