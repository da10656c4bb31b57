"""What a spec is, in one line of a table.

The shipped specs are counted once: `python -m compiler.catalogue` writes sizes.json, in which each
count stands with the hash of the architecture that it is of. Another architecture is counted when
it is asked for, so that no count is of a spec that has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from archspec.citations import family_of
from archspec.finding import zoo
from archspec.loading import Loaded, load
from archspec.spec import ARCHITECTURE
from compiler.resolve import resolve

SIZES = Path(__file__).with_name("sizes.json")


@dataclass(frozen=True)
class Size:
    """`macs` are for one input, and None where a module of the user's own cannot be counted."""

    parameters: int
    macs: int | None


@dataclass(frozen=True)
class Entry:
    """One spec, with its `Size`."""

    name: str
    family: str | None
    parameters: int
    macs: int | None
    data: str | None
    """The kind of data set; None where the spec names none."""
    cite: tuple[str, ...]
    summary: str


def entry(loaded: Loaded) -> Entry:
    """Describe a spec. Nothing of the network is allocated. Raises `SpecError`."""
    spec, size = loaded.spec, _known().get(hash_of(loaded)) or _counted(loaded)
    data = None if spec.data is None else spec.data.kind
    return Entry(
        spec.name,
        family_of(spec),
        size.parameters,
        size.macs,
        data,
        spec.cite,
        spec.summary,
    )


def hash_of(loaded: Loaded) -> str:
    """Of an architecture as it is written, with all that it inherits."""
    written = {key: loaded.tree.map[key].plain() for key in ARCHITECTURE if key in loaded.tree.map}
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


@cache
def _known() -> Mapping[str, Size]:
    """The sizes of the shipped specs, by the hashes of their architectures."""
    kept = json.loads(SIZES.read_text(encoding="utf-8"))
    return {each["architecture"]: Size(each["parameters"], each["macs"]) for each in kept.values()}


def _counted(loaded: Loaded) -> Size:
    from compiler.sizing import size_of  # which imports torch

    return size_of(resolve(loaded))


def sizes() -> str:
    """The text of sizes.json: the shipped specs, counted anew."""
    specs = [load(path) for path in sorted(zoo().glob("*.yaml"))]
    kept = {s.spec.name: {"architecture": hash_of(s), **asdict(_counted(s))} for s in specs}
    return json.dumps(kept, indent=1) + "\n"


if __name__ == "__main__":
    SIZES.write_text(sizes(), encoding="utf-8")
