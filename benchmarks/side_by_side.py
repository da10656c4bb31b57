"""The same reversible body by archspec and by its peers: memory, time, and gradients, side by side.

    python -m pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/side_by_side.py                      # a small body on this machine
    python benchmarks/side_by_side.py --size large --device cuda --precision bf16

All contenders run the very same modules, F and G of each layer, on the same streams. Their outputs
and gradients are held against plain autograd's first. Then they take steps in turn, many times
over: times are medians, and ratios medians of ratios within a repeat. Memory is that of live
tensors on a CPU and the allocator's on a GPU, with parameters, gradients and the input left out;
what it grows by with each sample is between half of the batch and the whole. A peer that is not
installed, or fails, has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from result_file import write_result
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import archspec
from archspec.loading import load
from compiler.memory import LiveBytes
from compiler.network import Network, build
from compiler.resolve import resolve
from compiler.stage import Stage

SIZES: Mapping[str, tuple[str, ...]] = {
    "small": (
        "input={image: [3, 64, 64]}",
        "stem=[patch_embed: {patch: 8, width: 192}, position: learned]",
        "stages.trunk.functions.F=[layer_norm, attention: {heads: 3}]",
        "stages.trunk.functions.G=[layer_norm, mlp: {ratio: 4}]",
    ),
    "large": (),
}
PEERS = ("memcnn", "momentumnet", "revlib", "revtorch")
Body = Callable[[Tensor], Tensor]
"""Both streams (B, N, 2d), one behind the other, → the same after all layers."""


class Rev:
    """The additive coupling: x1 += F(x2), x2 += G(x1)."""

    spec, settings = "rev_vit_b", ("stages.trunk.output=concat(x1, x2)",)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.pairs = [(layer.F, layer.G) for layer in stage.layers]

    def enter(self, value: Tensor) -> Tensor:
        """What goes in."""
        return torch.cat(self.stage.split(value), -1).detach()

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self._plain,
            "archspec": lambda: ours(self.stage, "reversible"),
            "torch.utils.checkpoint, every block": lambda: self._checkpointed,
            "memcnn": self._memcnn,
            "revlib": self._revlib,
            "revtorch": self._revtorch,
        }

    def _plain(self, value: Tensor) -> Tensor:
        x1, x2 = value.chunk(2, -1)
        for F, G in self.pairs:
            x1 = x1 + F(x2)
            x2 = x2 + G(x1)
        return torch.cat((x1, x2), -1)

    def _checkpointed(self, value: Tensor) -> Tensor:
        def block(x1: Tensor, x2: Tensor, F: nn.Module, G: nn.Module) -> tuple[Tensor, Tensor]:
            x1 = x1 + F(x2)
            return x1, x2 + G(x1)

        x1, x2 = value.chunk(2, -1)
        for F, G in self.pairs:
            x1, x2 = checkpoint(block, x1, x2, F, G, use_reentrant=False)
        return torch.cat((x1, x2), -1)

    def _memcnn(self) -> Body:
        import memcnn

        blocks = [
            memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(F, G, split_dim=2))
            for F, G in self.pairs
        ]
        return nn.Sequential(*blocks)

    def _revlib(self) -> Body:
        import revlib

        functions = [function for pair in self.pairs for function in pair]
        body: Body = revlib.ReversibleSequential(*functions, split_dim=2)
        return body

    def _revtorch(self) -> Body:
        import revtorch

        blocks = [revtorch.ReversibleBlock(F, G, split_along_dim=2) for F, G in self.pairs]
        body: Body = revtorch.ReversibleSequence(nn.ModuleList(blocks))
        return body


class Momentum:
    """v = gamma*v + (1 - gamma)*F(x), x += v."""

    spec = "rev_vit_b"
    settings = (
        "stages.trunk={coupling: momentum, functions: "
        "{F: [layer_norm, mlp: {ratio: 4}], G: null}, constants: {gamma: 0.9}}",
    )

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.functions = [layer.F for layer in stage.layers]

    def enter(self, value: Tensor) -> Tensor:
        """What goes in."""
        return value.detach()

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self._plain,
            "archspec": lambda: self._ours,
            "momentumnet": self._momentumnet,
        }

    def _plain(self, value: Tensor) -> Tensor:
        x, v = value, torch.zeros_like(value)
        for function in self.functions:
            v = 0.9 * v + (1 - 0.9) * function(x)
            x = x + v
        return x

    def _ours(self, value: Tensor) -> Tensor:
        self.stage.set_backward("reversible")
        out: Tensor = self.stage(*self.stage.start(value))[0]
        return out

    def _momentumnet(self) -> Body:
        from momentumnet import MomentumNet

        functions = [nn.Sequential(function) for function in self.functions]
        body: Body = MomentumNet(functions, gamma=0.9, use_backprop=False)
        return body


def ours(stage: Stage, strategy: str) -> Body:
    """Our stage on streams that lie one behind the other."""

    def body(value: Tensor) -> Tensor:
        stage.set_backward(strategy)
        return torch.cat(stage(*value.chunk(2, -1)), -1)

    return body


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = [row for kind in (Rev, Momentum) for row in compare(kind, arguments, device)]
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "archspec": archspec.__version__, **installed()},
        "size": arguments.size,
        "depth": arguments.depth,
        "batch": arguments.batch,
        "precision": arguments.precision,
        "rows": rows,
    }
    name = f"side_by_side_{arguments.size}_{arguments.precision}_{device.type}"
    write_result(name, json.dumps(result, indent=2) + "\n")


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
    kind: type[Rev] | type[Momentum], arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """All contenders of one coupling."""
    torch.manual_seed(0)
    settings = (*SIZES[arguments.size], f"stages.trunk.depth={arguments.depth}")
    network = network_of(kind, settings).to(device).train()
    body = kind(network.stages[0])
    with torch.no_grad():
        images = torch.randn(arguments.batch, *network.input, device=device)
        value = body.enter(network.stem(images))
    step = Step(list(network.stages[0].layers.parameters()), arguments.precision)
    rows, running = [], {}
    wanted: Sequence[Tensor] = ()
    for name, make in body.contenders().items():
        row: dict[str, object] = {"coupling": kind.__name__, "contender": name}
        rows.append(row)
        try:
            contender = make()
            found = step.gradients(contender, value)
        except Exception as error:  # of a peer: its row says so
            row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        wanted = wanted or found
        row["gradient_error"] = gradient_error(found, wanted)
        row["peak_bytes"] = step.peak(contender, value)
        half = step.peak(contender, value[: len(value) // 2])
        row["bytes_per_sample"] = (row["peak_bytes"] - half) / (len(value) - len(value) // 2)
        running[name] = contender
    for name, timed in times(step, running, value, arguments.repeats).items():
        next(row for row in rows if row["contender"] == name).update(timed)
    for row in rows:
        print_row(row)
    return rows


def network_of(kind: type[Rev] | type[Momentum], settings: Sequence[str]) -> Network:
    """A network whose one stage is compared."""
    return build(resolve(load(kind.spec, [*settings, *kind.settings])))


class Step:
    """One forward and backward pass; gradients are added to those there."""

    def __init__(self, parameters: Sequence[nn.Parameter], precision: str) -> None:
        self.parameters, self.half = parameters, precision == "bf16"

    def __call__(self, body: Body, value: Tensor) -> Tensor:
        """Gives the input with its gradient."""
        leaf = value.detach().requires_grad_()
        with torch.autocast(value.device.type, torch.bfloat16, enabled=self.half):
            loss = body(leaf.clone()).float().square().mean()  # some take their input away
        loss.backward()  # type: ignore[no-untyped-call]
        return leaf

    def gradients(self, body: Body, value: Tensor) -> list[Tensor]:
        """Of the input and of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        leaf = self(body, value)
        return [t.grad.clone() for t in (leaf, *self.parameters) if t.grad is not None]

    def peak(self, body: Body, value: Tensor) -> int:
        """The most bytes held at once, beside parameters, gradients and the input."""
        self(body, value)
        if value.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self(body, value)
            return torch.cuda.max_memory_allocated() - before
        grads = [p.grad for p in self.parameters if p.grad is not None]
        with LiveBytes() as live:
            live.ignore([*self.parameters, *grads, value])
            self(body, value)
        return live.peak


def gradient_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float | None:
    """The largest relative error of a gradient; None where some are missing."""
    if len(found) != len(wanted):
        return None
    return max(float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True))


def times(
    step: Step, bodies: Mapping[str, Body], value: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of a step of each, and their ratios to stored activations."""
    taken: dict[str, list[float]] = {name: [] for name in bodies}
    for repeat in range(repeats + 1):
        for name, body in bodies.items():
            began = now(value.device)
            step(body, value)
            if repeat:  # the first one warms up
                taken[name].append(now(value.device) - began)
    stored = taken["stored"]
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
    error = row["gradient_error"]
    print(
        f"{row['coupling']:9}{row['contender']:37}{row['peak_bytes'] / 1e6:9.1f} MB"
        f"{row['bytes_per_sample'] / 1e6:8.2f} a sample{1000 * row['step_seconds']:9.1f} ms"
        f"{row['step_ratio']:7.3f}  gradients " + ("missing" if error is None else f"{error:.1e}")
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
    return parser.parse_args()


if __name__ == "__main__":
    main()
