"""Stored, checkpointed and reversible backward passes of one network, side by side.

    python benchmarks/backward_strategies.py                      # a small Rev-ViT on this machine
    python benchmarks/backward_strategies.py --spec rev_vit_b --size full --device cuda

For each depth the same weights and batch take one training step (forward and backward) with each
strategy in turn, many times over; times are medians of the repeats, and each ratio is the median
of ratios within a repeat, so that a noisy machine slows both sides alike. Memory is exact: live
tensor bytes on a CPU, the allocator's peak on a GPU, parameters, gradients and input left out.
The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time

import torch
from result_file import write_result
from small_spec import SMALL

import archspec
from compiler.memory import step_memory
from compiler.network import Network

STRATEGIES = ("store", "checkpoint", "reversible")


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for depth in arguments.depths for row in measure(arguments, depth, device)]
    print_rows(rows)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "spec": arguments.spec,
        "size": arguments.size,
        "batch": arguments.batch,
        "precision": arguments.precision,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    name = f"backward_strategies_{arguments.spec}_{arguments.size}_{device}"
    write_result(name, json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spec", default="rev_vit_b")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--depths", type=depths, default=[6, 12, 24])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    return parser.parse_args()


def depths(text: str) -> list[int]:
    """`6,12` as numbers."""
    return [int(number) for number in text.split(",")]


def measure(arguments: argparse.Namespace, depth: int, device: str) -> list[dict[str, object]]:
    """All strategies at one depth."""
    torch.manual_seed(0)
    settings = SMALL if arguments.size == "small" else ()
    network = archspec.build(arguments.spec, [*settings, f"stages.trunk.depth={depth}"]).to(device)
    images = torch.randn(arguments.batch, *network.plan.input.sizes, device=device)
    memory = {s: peak_bytes(network.set_backward(s), images, arguments) for s in STRATEGIES}
    times: dict[str, list[float]] = {s: [] for s in STRATEGIES}
    for repeat in range(arguments.repeats + 1):
        for strategy in STRATEGIES:
            seconds = step_seconds(network.set_backward(strategy), images, arguments)
            if repeat > 0:  # the first round warms up
                times[strategy].append(seconds)
    return [
        {
            "depth": depth,
            "strategy": strategy,
            "peak_bytes": memory[strategy],
            "peak_ratio": memory[strategy] / memory["store"],
            "step_seconds": statistics.median(times[strategy]),
            "step_ratio": statistics.median(
                mine / stored for mine, stored in zip(times[strategy], times["store"], strict=True)
            ),
        }
        for strategy in STRATEGIES
    ]


def step(network: Network, images: torch.Tensor, arguments: argparse.Namespace) -> None:
    """One forward and backward pass; gradients are added to those there."""
    half = arguments.precision == "bf16"
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
        loss = network(images).float().square().mean()
    loss.backward()


def step_seconds(network: Network, images: torch.Tensor, arguments: argparse.Namespace) -> float:
    """The time of one step."""
    synchronise(images.device)
    start = time.perf_counter()
    step(network, images, arguments)
    synchronise(images.device)
    return time.perf_counter() - start


def peak_bytes(network: Network, images: torch.Tensor, arguments: argparse.Namespace) -> int:
    """The most activation memory during one step, gradients allocated beforehand."""
    if images.device.type == "cpu":
        return step_memory(network, lambda logits: logits.square().mean(), images).peak
    for _ in range(2):  # the first step makes the gradients, and warms the allocator up
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(network, images, arguments)
    return torch.cuda.max_memory_allocated() - before


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def print_rows(rows: list[dict[str, object]]) -> None:
    """A table."""
    print(f"{'depth':>5}  {'strategy':<11}{'peak MB':>9}{'ratio':>7}{'step ms':>9}{'ratio':>7}")
    for row in rows:
        peak, seconds = float(str(row["peak_bytes"])), float(str(row["step_seconds"]))
        print(
            f"{row['depth']:>5}  {row['strategy']:<11}{peak / 1e6:>9.1f}{row['peak_ratio']:>7.2f}"
            f"{1e3 * seconds:>9.1f}{row['step_ratio']:>7.2f}"
        )


if __name__ == "__main__":
    main()
