"""What a training step uses and takes, on the device that is there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from archspec.training import Train
from compiler.network import Network
from runners.profile.ledger import Ledger, Shares, Use, used
from runners.profile.schedules import Way
from runners.profile.step import TrainingStep


@dataclass(frozen=True)
class Times:
    """Seconds of a training step: medians over its repeats."""

    forward: float
    backward: float
    """With what is computed again on the way."""
    optimizer: float
    ratio: float
    """Of whole steps, to those of the first schedule in the same repeat."""

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.optimizer


def memory_use(network: Network, recipe: Train, device: torch.device) -> Use:
    """What a step uses: on a GPU by its allocator, elsewhere by live tensors. Raises
    `torch.OutOfMemoryError`."""
    step = TrainingStep(network, recipe, device)
    step()  # which makes the optimizer's state
    with Ledger(network, step.optimizer, step.average) as ledger:
        ledger.hold(step.held())
        found = used(ledger, step)
    if device.type != "cuda":
        return found
    return _of_allocator(step, device, found.shares)


def _of_allocator(step: TrainingStep, device: torch.device, shares: Shares) -> Use:
    """The allocator's peak: what live tensors do not account for is workspace of kernels."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    peak = torch.cuda.max_memory_allocated(device)
    parts = {**vars(shares), "workspace": shares.workspace + peak - shares.total}
    return Use(peak, torch.cuda.memory_allocated(device), Shares(**parts))


def times(
    network: Network,
    recipe: Train,
    device: torch.device,
    schedules: Sequence[Way],
    repeats: int,
) -> list[Times]:
    """Seconds of steps by each schedule in turn, many times over, so that a machine that is doing
    other things too slows all alike."""
    step = TrainingStep(network, recipe, device)
    rounds: list[list[tuple[float, ...]]] = []
    for repeat in range(repeats + 1):
        taken = []
        for schedule in schedules:
            schedule.apply(network)
            taken.append(_phases(step, device))
        if repeat:  # the first one warms up
            rounds.append(taken)
    found = []
    for place in range(len(schedules)):
        phases = zip(*(taken[place] for taken in rounds), strict=True)
        forward, backward, optimizer = map(statistics.median, phases)
        ratio = statistics.median(sum(taken[place]) / sum(taken[0]) for taken in rounds)
        found.append(Times(forward, backward, optimizer, ratio))
    return found


def _phases(step: TrainingStep, device: torch.device) -> tuple[float, ...]:
    step.optimizer.zero_grad()
    parts = step.parts(*step.inputs())
    forward = backward = 0.0
    for part in parts:
        began = now(device)
        loss = step.forward(*part)
        between = now(device)
        step.backward(loss)
        del loss
        forward, backward = forward + between - began, backward + now(device) - between
    began = now(device)
    step.update()
    # Of a batch in more parts, those that were not taken would have taken as long.
    scale = step.recipe.accumulate / len(parts)
    return forward * scale, backward * scale, now(device) - began


def now(device: torch.device) -> float:
    """Seconds, when all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
