"""What a person sees of a run on standard error: a bar, or a line for each epoch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from runners.tasks import Metric

MIB = 2**20
GPU_PEAK = "GPU peak"


@dataclass(frozen=True)
class Memory:
    """Bytes in use, and of which kind: a GPU counts tensors, the CPU only whole processes."""

    bytes: int
    kind: str

    def __str__(self) -> str:
        return f"{self.bytes / MIB:,.0f} MiB {self.kind}"


_PEAKS: dict[torch.device, int] = {}
"""Of each GPU, before the last look that does not count."""


def memory(device: torch.device) -> Memory:
    """The most tensors held at once on a GPU so far; elsewhere, the process's resident memory."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return Memory(max(peak, _PEAKS.get(device, 0)), GPU_PEAK)
    return Memory(psutil.Process().memory_info().rss, "process RSS")


def forget_peak(device: torch.device) -> None:
    """Let the peak of a GPU begin anew: several runs may share a process."""
    _PEAKS.pop(device, None)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def outside_peak(device: torch.device) -> Iterator[None]:
    """What a run looks at beside its training is no part of the peak of a GPU."""
    if device.type != "cuda":
        yield
        return
    _PEAKS[device] = memory(device).bytes
    try:
        yield
    finally:
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True)
class Glance:
    """A moment of training."""

    epoch: int
    loss: float
    measured: float
    """By the task's metric."""
    samples_per_second: float
    memory: Memory

    def long(self, metric: Metric) -> str:
        """For a line."""
        return (
            f"loss {self.loss:.4f}  {metric.name} {metric.text(self.measured)}  "
            f"{self.samples_per_second:,.0f} samples/s  {self.memory}"
        )

    def short(self, metric: Metric) -> str:
        """For a bar in 80 columns."""
        return (
            f"loss {self.loss:.3f} {metric.short} {metric.text(self.measured)} "
            f"{self.samples_per_second:,.0f}/s {self.memory.bytes / MIB:,.0f} MiB"
        )


class Watcher(Protocol):
    """Told of a run's progress."""

    def going_on(self, where: str) -> None:
        """Before the first step, where some have been taken earlier."""

    def step(self, glance: Glance) -> None:
        """After each step."""

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        """After each epoch."""


class Silent:
    """Shows nothing."""

    def going_on(self, where: str) -> None: ...

    def step(self, glance: Glance) -> None: ...

    def epoch(self, glance: Glance, validated: float, best: float) -> None: ...


@dataclass(frozen=True)
class Lines:
    """A line for each epoch, for logs."""

    console: Console
    epochs: int
    metric: Metric

    def going_on(self, where: str) -> None:
        _say_going_on(self.console, where)

    def step(self, glance: Glance) -> None: ...

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        text = self.metric.text
        validation = f"validation {text(validated)}, best {text(best)}"
        line = f"epoch {glance.epoch}/{self.epochs}  {glance.long(self.metric)}  {validation}"
        self.console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Bar:
    """One bar for the whole run."""

    progress: Progress
    task: TaskID
    metric: Metric

    def going_on(self, where: str) -> None:
        _say_going_on(self.progress.console, where)

    def step(self, glance: Glance) -> None:
        self.progress.update(
            self.task, advance=1, epoch=glance.epoch, glance=glance.short(self.metric)
        )

    def epoch(self, glance: Glance, validated: float, best: float) -> None:
        self.progress.update(self.task, validation=f"val {self.metric.text(validated)}")


def say(line: str) -> None:
    """A line for the person who watches."""
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)


def _say_going_on(console: Console, where: str) -> None:
    console.print(f"going on after {where}", highlight=False, soft_wrap=True)


@contextmanager
def watching(
    quiet: bool, epochs: int, steps_per_epoch: int, done: int, metric: Metric
) -> Iterator[Watcher]:
    """A watcher of a run of `epochs`, of which so many steps are done."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Silent() if quiet else Lines(console, epochs, metric)
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
                completed=done,
                epoch=done // steps_per_epoch,
                glance="",
                validation="",
            ),
            metric,
        )
