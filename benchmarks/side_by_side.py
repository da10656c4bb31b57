"""The same reversible body by archspec and by its peers: memory, time, and gradients, side by side.

    python -m pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/side_by_side.py                      # a small body on this machine
    python benchmarks/side_by_side.py --size large --device cuda --precision bf16
    python benchmarks/side_by_side.py --minrev ../minREV    # with a checkout of minREV

Contenders of one coupling run the very same modules, F and G of each layer, on the same streams;
a ViT is that of torchvision, with its weights converted for ours and taken over by timm's. Their
gradients are held against plain autograd's first, all of them, or the image's where modules are
others. Then they take steps in turn, many times over: times are medians, and ratios medians of
ratios within a repeat. Memory is that of live tensors on a CPU and the allocator's on a GPU, with
parameters, gradients and the input left out; what it grows by with each sample is between half of
the batch and the whole. The largest batch is what 8 GiB have room for by these numbers, beside
weights, gradients and AdamW's state. A peer that is not there, or fails, has a row that says so.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from contenders import SIZES, Body, Kind, Momentum, Rev, ViT
from result_file import write_rows
from torch import Tensor, nn

from archspec.loading import load
from compiler.memory import LiveBytes
from compiler.network import Network, build
from compiler.resolve import resolve

PEERS = ("memcnn", "momentumnet", "revlib", "revtorch", "timm", "torchvision")
ROOM = 8 * 2**30
"""Bytes, of a laptop's GPU."""
AGREES = {"fp32": 1e-3, "bf16": 0.1}
"""The relative error up to which a contender computes the same; a reversible one reconstructs by
rounded numbers, in bf16 on both sides of a rounding now and then."""
TRAINING = 4 * 4
"""Bytes of a parameter: itself, its gradient, two of AdamW's."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = [row for kind in (Rev, Momentum, ViT) for row in compare(kind, arguments, device)]
    name = f"side_by_side_{arguments.size}_{arguments.precision}_{device.type}"
    write_rows(name, rows, device, arguments, installed())


def installed() -> dict[str, str]:
    """The versions of the peers that are there."""
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def compare(
    kind: Kind, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """All contenders of one coupling."""
    torch.manual_seed(0)
    settings = (*kind.sizes[arguments.size], f"stages.trunk.depth={arguments.depth}")
    network = network_of(kind, settings).to(device).train()
    body = kind(network, arguments)
    with torch.no_grad():
        images = torch.randn(arguments.batch, *network.input, device=device)
        value = body.enter(images)
    rows, running = [], {}
    wanted: Sequence[Tensor] = ()
    for name, make in body.contenders().items():
        row: dict[str, Any] = {"coupling": kind.__name__, "contender": name}
        rows.append(row)
        try:
            contender = make()
            step = Step(contender, body.parameters(contender), arguments.precision)
            found = step.outcome(value)
        except Exception as error:  # of a peer: its row says so
            row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        wanted = wanted or found
        # Modules of others have parameters of other names: the image's gradient speaks for them.
        compared = 2 if kind is ViT else len(wanted)
        row["output_error"] = error_of(found[:1], wanted[:1])
        row["gradient_error"] = error_of(found[1:compared], wanted[1:compared])
        error = float(torch.tensor([row["output_error"], row["gradient_error"]]).max())
        if not error <= AGREES[arguments.precision]:
            row["failure"] = f"computes something else: its error is {error:.0e}"
            continue
        row["peak_bytes"] = step.peak(value)
        half = step.peak(value[: len(value) // 2])
        row["bytes_per_sample"] = (row["peak_bytes"] - half) / (len(value) - len(value) // 2)
        row["largest_batch"] = largest_batch(row, len(value), step.parameters)
        running[name] = step
    for name, timed in times(running, value, arguments.repeats).items():
        next(row for row in rows if row["contender"] == name).update(timed)
    for row in rows:
        print_row(row)
    return rows


def largest_batch(row: Mapping[str, Any], batch: int, parameters: Sequence[Tensor]) -> int:
    """Samples that there is room for, beside what parameters take in training."""
    fixed = row["peak_bytes"] - batch * row["bytes_per_sample"]
    weights = TRAINING * sum(parameter.numel() for parameter in parameters)
    return int((ROOM - fixed - weights) // row["bytes_per_sample"])


def network_of(kind: Kind, settings: Sequence[str]) -> Network:
    """A network whose one stage is compared."""
    return build(resolve(load(kind.spec, [*settings, *kind.settings])))


class Step:
    """One forward and backward pass; gradients are added to those there."""

    def __init__(self, body: Body, parameters: Sequence[nn.Parameter], precision: str) -> None:
        self.body, self.parameters, self.half = body, parameters, precision == "bf16"

    def __call__(self, value: Tensor) -> Tensor:
        """Gives the input with its gradient."""
        leaf = value.detach().requires_grad_()
        with self.autocast(value):
            loss = self.body(leaf.clone()).float().square().mean()  # some take their input away
        loss.backward()  # type: ignore[no-untyped-call]
        return leaf

    def outcome(self, value: Tensor) -> list[Tensor]:
        """The output, and the gradients of the input and of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        with torch.no_grad(), self.autocast(value):
            output = self.body(value.clone()).float()
        leaf = self(value)
        gradients = [t.grad for t in (leaf, *self.parameters) if t.grad is not None]
        return [output, *(gradient.clone() for gradient in gradients)]

    def autocast(self, value: Tensor) -> torch.autocast:
        """That of the precision."""
        return torch.autocast(value.device.type, torch.bfloat16, enabled=self.half)

    def peak(self, value: Tensor) -> int:
        """The most bytes held at once, beside parameters, gradients and the input."""
        self(value)
        if value.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self(value)
            return torch.cuda.max_memory_allocated() - before
        grads = [p.grad for p in self.parameters if p.grad is not None]
        with LiveBytes() as live:
            live.ignore([*self.parameters, *grads, value])
            self(value)
        return live.peak


def error_of(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error; not a number where one is, infinite where some are missing."""
    if len(found) != len(wanted):
        return math.inf
    errors = [(f - w).norm() / w.norm() for f, w in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def times(steps: Mapping[str, Step], value: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step of each, and their ratios to stored activations."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            began = now(value.device)
            step(value)
            if repeat:  # the first one warms up
                taken[name].append(now(value.device) - began)
    stored = taken.get("stored") or [math.nan] * repeats
    return {
        name: {
            "step_seconds": statistics.median(seconds),
            "step_ratio": statistics.median(a / b for a, b in zip(seconds, stored, strict=True)),
        }
        for name, seconds in taken.items()
    }


def now(device: torch.device) -> float:
    """Seconds, when all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_row(row: Mapping[str, Any]) -> None:
    """A line for a person."""
    if "failure" in row:
        print(f"{row['coupling']:9}{row['contender']:37}{row['failure']}")
        return
    print(
        f"{row['coupling']:9}{row['contender']:37}{row['peak_bytes'] / 1e6:9.1f} MB"
        f"{row['bytes_per_sample'] / 1e6:8.2f} a sample{1000 * row['step_seconds']:9.1f} ms"
        f"{row['step_ratio']:7.3f}  gradients {row['gradient_error']:.1e}"
    )


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--minrev", metavar="FOLDER", help="a checkout of minREV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
