"""What torch.compile gives: residual functions compiled one by one, or the whole model.

    python benchmarks/compiled_functions.py
    python benchmarks/compiled_functions.py --size full --device cuda --precision bf16 --batch 64

The same network takes training steps in turn, stored and reversed: as it is, with its residual
functions compiled, and, stored, compiled whole without graph breaks, which a reversible stage does
not allow. Ratios are medians of ratios within a repeat, to the stored step that is not compiled.
The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from result_file import write_rows
from small_spec import SMALL

from archspec.loading import load
from archspec.training import Train
from compiler.network import Network, build
from compiler.resolve import resolve
from runners.devices import find_device
from runners.profile.measurement import now
from runners.profile.step import TrainingStep


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = find_device(arguments.device)
    ways = {
        name: step_of(make(arguments, device), strategy, arguments, device)
        for name, (make, strategy) in WAYS.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(arguments.repeats + 2):
        for name, step in ways.items():
            began = now(device)
            step()
            if repeat > 1:  # the first ones compile
                taken[name].append(now(device) - began)
    stored = taken["stored"]
    rows = [
        {
            "way": name,
            "step_seconds": statistics.median(seconds),
            "step_ratio": statistics.median(a / b for a, b in zip(seconds, stored, strict=True)),
        }
        for name, seconds in taken.items()
    ]
    for row in rows:
        print(f"{row['way']:34}{1000 * row['step_seconds']:9.1f} ms{row['step_ratio']:8.3f}")
    name = f"compiled_{arguments.spec}_{arguments.size}_{arguments.precision}_{device.type}"
    write_rows(name, rows, device, arguments)


def plain(arguments: argparse.Namespace, device: torch.device) -> Network:
    """The network as it is."""
    torch.manual_seed(0)
    settings = SMALL if arguments.size == "small" else ()
    return build(resolve(load(arguments.spec, settings))).to(device)


def by_function(arguments: argparse.Namespace, device: torch.device) -> Network:
    """With its residual functions compiled."""
    network = plain(arguments, device)
    for stage in network.stages:
        for layer in stage.layers:
            for function in layer.children():
                function.compile()
    return network


def whole(arguments: argparse.Namespace, device: torch.device) -> Network:
    """Compiled as one graph."""
    network = plain(arguments, device).set_backward("store")
    network.compile(fullgraph=True)
    return network


WAYS: dict[str, tuple[Callable[[argparse.Namespace, torch.device], Network], str]] = {
    "stored": (plain, "store"),
    "reversible": (plain, "reversible"),
    "stored, functions compiled": (by_function, "store"),
    "reversible, functions compiled": (by_function, "reversible"),
    "stored, compiled whole": (whole, "store"),
}


def step_of(
    network: Network, strategy: str, arguments: argparse.Namespace, device: torch.device
) -> TrainingStep:
    """Its training step, by a strategy."""
    network.set_backward(strategy)
    recipe = Train(epochs=1, batch=arguments.batch, learning_rate=1e-4)
    return TrainingStep(
        network, recipe.model_copy(update={"precision": arguments.precision}), device
    )


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spec", default="rev_vit_b")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
