"""Files of images and videos that could not be decoded: named, counted, and passed over."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runners.files import write_json
from runners.samples import Unreadable

LOG = logging.getLogger("archspec")
MOST_TOLD = 20
"""So many are told as they are met; the file has them all."""


@dataclass(frozen=True)
class PassedOver:
    """Those of a run so far. Each is told once."""

    file: Path
    """Where they are written, as a JSON object of paths and reasons."""
    known: dict[str, str] = field(default_factory=dict)
    writes: bool = True
    """In the first process alone."""

    def note(self, found: Unreadable) -> None:
        """Remember what has not been met before."""
        new = {path: why for path, why in found.items() if path not in self.known}
        if not new:
            return
        for path, why in list(new.items())[: max(0, MOST_TOLD - len(self.known))]:
            LOG.warning("cannot read the file %s, which is passed over: %s", path, why)
        self.known.update(new)
        if self.writes:
            write_json(self.file, self.known)

    def with_those_of(self, others: Sequence[Unreadable]) -> None:
        """Know, and write, what other processes have met too."""
        before = len(self.known)
        for found in others:
            self.known.update(found)
        if self.writes and len(self.known) > before:
            write_json(self.file, self.known)


def passed_over(file: Path, writes: bool = True) -> PassedOver:
    """Those that an earlier sitting of the run has met, and what is to come."""
    try:
        return PassedOver(file, dict(json.loads(file.read_text(encoding="utf-8"))), writes)
    except (OSError, ValueError, TypeError):
        return PassedOver(file, writes=writes)
