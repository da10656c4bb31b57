"""What a person sees of a run on standard error: a bar, or a line for each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes in use, and of which kind: a GPU counts tensors, the CPU only whole processes."""

    bytes: int
    kind: str

    def __str__(self) -> str:
        return f"{self.bytes / MIB:,.0f} MiB {self.kind}"


def memory(device: torch.device) -> Memory:
    """The most tensors held at once on a GPU so far; elsewhere, the process's resident memory."""
    if device.type == "cuda":
        return Memory(torch.cuda.max_memory_allocated(device), "GPU peak")
    return Memory(psutil.Process().memory_info().rss, "process RSS")


@dataclass(frozen=True)
class Glance:
    """A moment of training."""

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    memory: Memory

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}  accuracy {self.accuracy:6.2%}  "
            f"{self.images_per_second:,.0f} images/s  {self.memory}"
        )

    def short(self) -> str:
        """For a bar in 80 columns."""
        return (
            f"loss {self.loss:.3f} acc {self.accuracy:5.1%} {self.images_per_second:,.0f} img/s "
            f"{self.memory.bytes / MIB:,.0f} MiB"
        )


class Watcher(Protocol):
    """Told of a run's progress."""

    def step(self, glance: Glance) -> None:
        """After each step."""

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        """After each epoch."""


class Silent:
    """Shows nothing."""

    def step(self, glance: Glance) -> None: ...

    def epoch(self, glance: Glance, validated: float, best: float) -> None: ...


@dataclass(frozen=True)
class Lines:
    """A line for each epoch, for logs."""

    console: Console
    epochs: int

    def step(self, glance: Glance) -> None: ...

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        validation = f"validation {validated:.2%}, best {best:.2%}"
        text = f"epoch {glance.epoch}/{self.epochs}  {glance}  {validation}"
        self.console.print(text, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Bar:
    """One bar for the whole run."""

    progress: Progress
    task: TaskID

    def step(self, glance: Glance) -> None:
        self.progress.update(self.task, advance=1, epoch=glance.epoch, glance=glance.short())

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        self.progress.update(self.task, validation=f"val {validated:.1%}")


@contextmanager
def watching(quiet: bool, epochs: int, steps_per_epoch: int, done: int) -> Iterator[Watcher]:
    """A watcher of a run of `epochs`, of which `done` are over."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Silent() if quiet else Lines(console, epochs)
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(bar_width=6),
        TextColumn("{task.fields[glance]} {task.fields[validation]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(
            progress,
            progress.add_task(
                "training",
                total=epochs * steps_per_epoch,
                completed=done * steps_per_epoch,
                epoch=done,
                glance="",
                validation="",
            ),
        )
