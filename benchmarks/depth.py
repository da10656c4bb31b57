"""Memory and time against depth, to a thousand layers.

    python benchmarks/depth.py
    python benchmarks/depth.py --device cuda --width 1024 --tokens 196 --batch 32

One forward and backward pass of a Rev-ViT body of each depth, with stored activations while these
are few enough, and reversed. Memory is that of activations: parameters, their gradients and the
input are left out. The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from result_file import write_rows

from archspec.loading import load
from compiler.memory import step_memory
from compiler.network import Network, build
from compiler.resolve import resolve
from runners.devices import find_device

DEPTHS = (10, 30, 100, 300, 1000)
MOST_STORED = 100
"""Layers."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = find_device(arguments.device)
    rows = []
    for depth in DEPTHS:
        network = network_of(depth, arguments).to(device)
        value = torch.randn(arguments.batch, *network.input, device=device)
        for strategy in ("store", "reversible"):
            if strategy == "store" and depth > MOST_STORED:
                continue
            network.set_backward(strategy)
            row = {
                "depth": depth,
                "strategy": strategy,
                "peak_bytes": peak(network, value),
                "seconds": seconds(network, value, arguments.repeats),
            }
            print(
                f"{depth:5} {strategy:11}{row['peak_bytes'] / 2**20:9.2f} MiB"
                f"{1000 * row['seconds'] / depth:9.3f} ms a layer"
            )
            rows.append(row)
    write_rows(f"depth_{device.type}", rows, device, arguments)


def network_of(depth: int, arguments: argparse.Namespace) -> Network:
    """Layers of a Rev-ViT on tokens."""
    torch.manual_seed(0)
    settings = (
        f"input={{tokens: [{arguments.tokens}, {arguments.width}]}}",
        "stem=[]",
        f"stages.trunk.depth={depth}",
        "stages.trunk.functions.F=[layer_norm, attention: {heads: 4}]",
        "stages.trunk.functions.G=[layer_norm, mlp: {ratio: 4}]",
    )
    return build(resolve(load("rev_vit_b", settings)))


def peak(network: Network, value: torch.Tensor) -> int:
    """The most bytes of activations at any time."""
    if value.device.type != "cuda":
        return step_memory(network, _loss, value).peak
    for _ in range(2):  # the first step makes the gradients
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(network, value)
    return torch.cuda.max_memory_allocated() - before


def seconds(network: Network, value: torch.Tensor, repeats: int) -> float:
    """Of a step: the median."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        step(network, value)
        if value.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def step(network: Network, value: torch.Tensor) -> None:
    """One forward and backward pass."""
    _loss(network(value)).backward()


def _loss(out: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
