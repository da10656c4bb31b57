"""What a run writes down as it goes: metrics.jsonl and TensorBoard's files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from runners.run_folder import RunFolder, append_metrics

Scalars = Mapping[str, float]


class Records(Protocol):
    """Where numbers of a run go."""

    def epoch(self, number: int, scalars: Scalars, memory_kind: str) -> None:
        """After an epoch, counted from 1."""

    def step(self, number: int, scalars: Scalars) -> None:
        """After a step, counted from 1 over the whole run."""


class NoRecords:
    """Of processes other than the first."""

    def epoch(self, number: int, scalars: Scalars, memory_kind: str) -> None: ...

    def step(self, number: int, scalars: Scalars) -> None: ...


@dataclass(frozen=True)
class FileRecords:
    """In the run's folder."""

    folder: RunFolder
    by_epoch: SummaryWriter
    by_step: SummaryWriter
    """Apart, since TensorBoard drops what a lost process wrote by its number."""

    def epoch(self, number: int, scalars: Scalars, memory_kind: str) -> None:
        # JSON has no NaN.
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        append_metrics(self.folder, {"epoch": number, **values, "memory_kind": memory_kind})
        for name, value in values.items():
            if value is not None:
                tag = re.sub(r"^(train|validation)_", r"\1/", name)
                self.by_epoch.add_scalar(tag, value, number)
        self.by_epoch.flush()

    def step(self, number: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):
                self.by_step.add_scalar(name, value, number)


@contextmanager
def recording(folder: RunFolder, epochs: int, steps: int) -> Iterator[Records]:
    """Records of a run of which so many epochs, and steps, are done."""
    with (
        SummaryWriter(str(folder.tensorboard), purge_step=epochs + 1) as by_epoch,
        SummaryWriter(str(folder.tensorboard / "steps"), purge_step=steps + 1) as by_step,
    ):
        yield FileRecords(folder, by_epoch, by_step)
