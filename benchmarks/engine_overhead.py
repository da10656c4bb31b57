"""The engine's own work in a call of a residual function, beside what the function takes.

    python benchmarks/engine_overhead.py

Two networks of the same layers take steps in turn with stored activations and reversed. In a tiny
one nearly all of a call is Python, so that the difference is the engine's: in the forward pass,
and in the backward pass beyond a second forward. In one of CIFAR's size the same microseconds are
a share of a call's forward pass. Seconds are those of the process, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from result_file import write_rows

from archspec.loading import load
from archspec.training import Train
from compiler.network import Network, build
from compiler.resolve import resolve
from runners.profile.schedules import REVERSIBLE, STORE, Schedule, all_calls
from runners.profile.step import TrainingStep

CPU = torch.device("cpu")
TINY = (
    "input={image: [3, 8, 8]}",
    "stem.0.patch_embed.patch=4",
    "stem.0.patch_embed.width=8",
    "stages.trunk.functions.F.1.attention.heads=2",
)
DEPTHS = (12, 48)
Phases = tuple[float, float]
"""Seconds of a forward and of a backward pass."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = [row(name, arguments.repeats) for name in ("rev_vit_cifar10", "momrev_vit_cifar10")]
    write_rows("engine_overhead", rows, CPU)


def row(name: str, repeats: int) -> dict[str, object]:
    """The overhead of one network's calls."""
    forward, backward = tiny_overhead(name, repeats)
    large = build(resolve(load(name)))
    large_stored, large_reversed = medians(large, 128, max(3, repeats // 20))
    call = large_stored[0] / all_calls(large.stages)
    found = {
        "spec": name,
        "batch": 128,
        "forward_us": 1e6 * forward,
        "replay_us": 1e6 * backward,
        "call_us": 1e6 * call,
        "forward_share": forward / call,
        "replay_share": backward / call,
        "step_ratio": sum(large_reversed) / sum(large_stored),
    }
    print(
        f"{name}: {1e6 * forward:.0f} µs a call forward, {1e6 * backward:.0f} µs in its replay: "
        f"{forward / call:.2%} and {backward / call:.2%} of a call of {1e3 * call:.1f} ms; "
        f"whole steps {found['step_ratio']:.3f}"
    )
    return found


def tiny_overhead(name: str, repeats: int) -> Phases:
    """Seconds of the engine for each call of a tiny network, forward and in its replay. Between
    two depths, so that the stem, the head and the loss, which are not replayed, are left out."""
    totals, calls = [], []
    for depth in DEPTHS:
        tiny = build(resolve(load(name, [*TINY, f"stages.trunk.depth={depth}"])))
        stored, reversed = medians(tiny, 1, repeats)
        totals.append((reversed[0] - stored[0], reversed[1] - stored[1] - stored[0]))
        calls.append(all_calls(tiny.stages))
    (forward, backward), (more_forward, more_backward) = totals
    more = calls[1] - calls[0]
    return (more_forward - forward) / more, (more_backward - backward) / more


def medians(network: Network, batch: int, repeats: int) -> tuple[Phases, Phases]:
    """Of steps with stored activations, and of reversed ones, taken in turn."""
    step = TrainingStep(network, Train(epochs=1, batch=batch, learning_rate=1e-4), CPU)
    schedules = (STORE, REVERSIBLE)
    taken: list[list[Phases]] = [[phases(step, s) for s in schedules] for _ in range(repeats + 1)]
    first, second = (middle([r[place] for r in taken[1:]]) for place in range(2))
    return first, second


def middle(rounds: Sequence[Phases]) -> Phases:
    """The medians of both phases."""
    forward, backward = zip(*rounds, strict=True)
    return statistics.median(forward), statistics.median(backward)


def phases(step: TrainingStep, schedule: Schedule) -> Phases:
    """One step."""
    schedule.apply(step.network)
    inputs, side = step.inputs()
    began = time.process_time()
    loss = step.forward(inputs, side)
    between = time.process_time()
    step.backward(loss)
    ended = time.process_time()
    step.update()
    return between - began, ended - between


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    main()
