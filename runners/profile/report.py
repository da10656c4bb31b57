"""Specs profiled: rows of what a training step uses and takes, by spec, depth and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil
import torch

from archspec.memory_size import size_text
from archspec.training import Train
from compiler.network import Network, build
from compiler.plan import NetworkPlan
from runners.devices import matrix_precision
from runners.layout import channels_last_where_it_pays
from runners.profile.fit import largest_batch, most_within
from runners.profile.ledger import Use
from runners.profile.measurement import Times, memory_use, times
from runners.profile.prediction import CannotPredictError, Forecast
from runners.profile.schedules import (
    AsWritten,
    Kept,
    Schedule,
    all_calls,
    keeping,
    most_kept,
    schedules_of,
)

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Asked:
    """What is profiled."""

    schedules: tuple[str, ...]
    device: torch.device
    """What is measured on, or, where it is not there, predicted for."""
    is_there: bool
    repeats: int
    """Timed steps of each schedule; 0 for none."""
    budget: int | None = None
    """Bytes that a step may take, to which the largest batch is found."""


@dataclass(frozen=True)
class Row:
    """One network by one schedule."""

    spec: str
    depth: int
    """Layers, of all stages."""
    schedule: str
    batch: int
    predicted: Use | None
    measured: Use | None = None
    per_sample: float | None = None
    """Bytes by which the peak grows with each sample, between this batch and one twice as large."""
    times: Times | None = None
    replay: float | None = None
    """Seconds by which the backward pass is longer than that of stored activations."""
    samples_per_second: float | None = None
    largest: int | None = None
    """The largest batch within the budget."""
    largest_per_second: float | None = None
    """Samples a second at that."""
    note: str = ""

    @property
    def use(self) -> Use | None:
        """What is measured, or else predicted."""
        return self.measured or self.predicted


@dataclass(frozen=True)
class Report:
    """All rows, and what they were made with."""

    rows: tuple[Row, ...]
    command: str
    machine: dict[str, str]
    precision: tuple[str, ...]
    device: str
    is_there: bool
    fit: int | None = None
    """Bytes of the device that was asked about."""
    budget: int | None = None
    """Bytes of it that a step may take."""
    by_batch: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Of each spec and schedule, the peak predicted at some batches."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for row, shown in zip(self.rows, found["rows"], strict=True):
            if row.times is not None:
                shown["times"]["step"] = row.times.step
        return found


def profile(
    name: str,
    plan: NetworkPlan,
    recipe: Train,
    asked: Asked,
    tell: Callable[[str], None],
    written: AsWritten | None = None,
) -> Iterator[Row]:
    """The rows of one network, at a recipe's batch; with one for what its spec says, where that is
    given."""
    forecast = Forecast(plan, asked.device.type)
    schedules = schedules_of(forecast.network, asked.schedules)
    schedules += [written] if written else []
    schedules += _planned(forecast, recipe, schedules, asked)
    depth = sum(stage.depth for stage in plan.stages)
    rows = []
    for schedule in schedules:
        tell(f"{name}, {depth} layers, {schedule.name}: predicting")
        rows.append(_predicted(name, depth, forecast, recipe, schedule, asked))
    if asked.is_there:
        tell(f"{name}, {depth} layers: measuring")
        with matrix_precision(recipe):
            rows = _measured(plan, recipe, asked, schedules, rows)
    yield from rows


def _planned(
    forecast: Forecast, recipe: Train, schedules: Sequence[Schedule], asked: Asked
) -> list[Schedule]:
    """The most frugal schedule, with as much kept as the budget allows at a recipe's batch: none
    where that is nothing, or all."""
    kinds = [s for s in schedules if s.strategy != "store" and not isinstance(s, AsWritten)]
    frugal = kinds[-1] if kinds else None
    if asked.budget is None or frugal is None:
        return []
    frugal.apply(forecast.network)
    calls = all_calls(forecast.network.stages)

    def within(more: int) -> Schedule:
        return replace(frugal, kept=keeping(more, calls))

    try:
        more = most_within(
            lambda more: forecast.peak(recipe, within(more)), most_kept(calls), asked.budget
        )
    except CannotPredictError:
        return []
    if not more or more == most_kept(calls):
        return []
    kept = keeping(more, calls)
    name = f"{frugal.name}, {kept.stored} stored, {kept.results} results"
    return [replace(within(more), name=name)]


def _predicted(
    name: str, depth: int, forecast: Forecast, recipe: Train, schedule: Schedule, asked: Asked
) -> Row:
    row = Row(name, depth, schedule.name, recipe.batch, None)
    twice = recipe.model_copy(update={"batch": 2 * recipe.batch})
    try:
        use = forecast.use(recipe, schedule)
        slope = (forecast.peak(twice, schedule) - use.peak) / (twice.at_once - recipe.at_once)
        row = replace(row, predicted=use, per_sample=slope)
        if asked.budget is None or schedule.kept != Kept():
            return row
        peak = _peak(forecast, schedule)
        return replace(row, largest=largest_batch(peak, recipe, asked.budget))
    except CannotPredictError as error:
        return replace(row, note=f"cannot be predicted: {error}")


def _peak(forecast: Forecast, schedule: Schedule) -> Callable[[Train], int]:
    return lambda recipe: forecast.peak(recipe, schedule)


def _measured(
    plan: NetworkPlan,
    recipe: Train,
    asked: Asked,
    schedules: Sequence[Schedule],
    rows: Sequence[Row],
) -> list[Row]:
    """The rows with what is measured. A schedule that needs more memory than there is has none."""
    torch.manual_seed(recipe.seed)
    network = channels_last_where_it_pays(build(plan)).to(asked.device)  # as for training
    network.set_progress(1.0)  # from which on all that can be reversed is
    found, fitting = [], []
    for schedule, row in zip(schedules, rows, strict=True):
        if lacks := _lacking(asked.device, row.predicted.peak if row.predicted else None):
            found.append(replace(row, note=lacks))
            continue
        schedule.apply(network)
        try:
            found.append(replace(row, measured=memory_use(network, recipe, asked.device)))
            fitting.append(schedule)
        except torch.OutOfMemoryError:
            network.zero_grad()
            found.append(replace(row, note=OUT_OF_MEMORY))
    if not asked.repeats or not fitting:
        return found
    try:
        steps = times(network, recipe, asked.device, fitting, asked.repeats)
    except torch.OutOfMemoryError:
        return found
    taken = dict(zip(fitting, steps, strict=True))
    stored = next((t for s, t in taken.items() if s.strategy == "store"), None)
    timed = [
        _timed(row, taken[schedule], stored) if schedule in taken else row
        for schedule, row in zip(schedules, found, strict=True)
    ]
    return [
        _at_largest(network, recipe, asked, *each) for each in zip(schedules, timed, strict=True)
    ]


def _lacking(device: torch.device, peak: int | None) -> str:
    """Why so many bytes cannot be had, where that is known. A GPU refuses what it does not have; a
    machine promises more of its own memory than there is, and ends the process that takes it."""
    free = int(psutil.virtual_memory().available)
    if device.type == "cuda" or peak is None or peak <= free:
        return ""
    return f"not measured: it takes {size_text(peak)}, and {size_text(free)} are free"


def _timed(row: Row, taken: Times, stored: Times | None) -> Row:
    replay = taken.backward - stored.backward if stored else None
    return replace(row, times=taken, replay=replay, samples_per_second=row.batch / taken.step)


def _at_largest(network: Network, recipe: Train, asked: Asked, schedule: Schedule, row: Row) -> Row:
    """With the samples a second of the largest batch, where there is one."""
    if not row.largest or row.times is None:
        return row
    if lacks := _lacking(asked.device, asked.budget):
        return replace(row, note=lacks)
    larger = recipe.model_copy(update={"batch": row.largest, "accumulate": 1})
    try:
        (taken,) = times(network, larger, asked.device, [schedule], min(asked.repeats, 3))
    except torch.OutOfMemoryError:
        network.zero_grad()
        return replace(row, note=f"out of memory at a batch of {row.largest}")
    return replace(row, largest_per_second=row.largest / taken.step)


def by_batch(
    name: str, plan: NetworkPlan, recipe: Train, asked: Asked
) -> dict[str, list[tuple[int, int]]]:
    """The peak predicted at batches around a recipe's, for each schedule: to be drawn."""
    forecast, found = Forecast(plan, asked.device.type), {}
    for schedule in schedules_of(forecast.network, asked.schedules):
        peak = _peak(forecast, schedule)
        batches = sorted({max(1, recipe.batch * part // 4) for part in (1, 2, 4, 8)})
        try:
            found[f"{name}, {schedule.name}"] = [
                (batch, peak(recipe.model_copy(update={"batch": batch}))) for batch in batches
            ]
        except CannotPredictError:
            continue
    return found
