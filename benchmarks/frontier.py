"""Time against memory, from nothing kept to everything stored.

    python benchmarks/frontier.py                       # a small Rev-ViT on this machine
    python benchmarks/frontier.py --size full --device cuda --precision bf16 --batch 64

A network takes whole training steps in turn: with stored activations, checkpointed before every
layer and at the square root of the depth, reversed, and in between as the planner goes, with the
results of more and more calls kept and then their activations. Memory is that of the whole step
(live tensors on a CPU, the allocator's on a GPU), and ratios are medians of ratios within a repeat.
The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from result_file import write_rows
from small_spec import SMALL

from archspec.loading import load
from archspec.training import Train
from compiler.network import build
from compiler.resolve import resolve
from runners.devices import find_device
from runners.profile.measurement import memory_use, times
from runners.profile.schedules import (
    CHECKPOINT,
    REVERSIBLE,
    ROOT,
    STORE,
    Schedule,
    all_calls,
    keeping,
    most_kept,
)

STEPS = 6
"""Of the planner, each way: as many with results as with activations."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = find_device(arguments.device)
    settings = SMALL if arguments.size == "small" else ()
    torch.manual_seed(0)
    network = build(resolve(load(arguments.spec, settings))).to(device)
    recipe = Train(epochs=1, batch=arguments.batch, learning_rate=1e-4)
    recipe = recipe.model_copy(update={"precision": arguments.precision})
    ways = schedules(all_calls(network.stages))
    memory = []
    for way in ways:
        way.apply(network)
        memory.append(memory_use(network, recipe, device).peak)
    taken = times(network, recipe, device, ways, arguments.repeats)
    rows = [
        {
            "way": way.name,
            "stored": way.kept.stored,
            "results": way.kept.results,
            "peak_bytes": peak,
            "step_seconds": of.step,
            "step_ratio": of.ratio,
        }
        for way, peak, of in zip(ways, memory, taken, strict=True)
    ]
    for row in rows:
        print(f"{row['way']:34}{row['peak_bytes'] / 2**20:10.1f} MiB{row['step_ratio']:8.3f}")
    name = f"frontier_{arguments.spec}_{arguments.size}_{arguments.precision}_{device.type}"
    write_rows(name, rows, device, arguments)


def schedules(calls: int) -> list[Schedule]:
    """Stored, the planner's from much kept to little, reversed, and checkpointed."""
    most = most_kept(calls)
    wanted = {round(most * step / (2 * STEPS)) for step in range(1, 2 * STEPS)}
    planned = [
        replace(REVERSIBLE, name=f"{kept.stored} stored, {kept.results} with results", kept=kept)
        for kept in (keeping(more, calls) for more in sorted(wanted, reverse=True))
    ]
    return [STORE, *planned, REVERSIBLE, CHECKPOINT, ROOT]


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spec", default="rev_vit_b")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
