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
import importlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch
import torchvision
from result_file import write_result
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import archspec
from archspec.loading import load
from compiler.conversion.convert import convert, paired, weights_of
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
VIT = {
    "small": {"image": 64, "patch": 8, "width": 192, "heads": 3},
    "large": {"image": 224, "patch": 16, "width": 768, "heads": 12},
}
PEERS = ("memcnn", "momentumnet", "revlib", "revtorch", "timm", "torchvision")
ROOM = 8 * 2**30
TRAINING = 4 * 4
"""Bytes of a parameter: itself, its gradient, two of AdamW's."""
Body = Callable[[Tensor], Tensor]
"""Both streams (B, N, 2d), one behind the other, → the same after all layers; or images (B, 3, H,
W) → logits."""


class Rev:
    """The additive coupling: x1 += F(x2), x2 += G(x1)."""

    spec, settings, sizes = "rev_vit_b", ("stages.trunk.output=concat(x1, x2)",), SIZES

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.stem, self.stage = network.stem, cast(Stage, network.stages[0])
        self.minrev, self.half = arguments.minrev, arguments.precision == "bf16"
        self.pairs = [(layer.F, layer.G) for layer in self.stage.layers]

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return torch.cat(self.stage.split(self.stem(images)), -1).detach()

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: of all the same."""
        return list(self.stage.layers.parameters())

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self._plain,
            "archspec": lambda: ours(self.stage, "reversible"),
            "archspec, results kept": lambda: ours(self.stage, "reversible", 2 * len(self.pairs)),
            "torch.utils.checkpoint, every block": lambda: self._checkpointed,
            "memcnn": self._memcnn,
            "revlib": self._revlib,
            "revtorch": self._revtorch,
            **({"minREV": self._minrev} if self.minrev else {}),
        }

    def _minrev(self) -> Body:
        sys.path.insert(0, str(self.minrev))
        rev = importlib.import_module("rev")
        blocks = []
        for F, G in self.pairs:
            block = rev.ReversibleBlock(dim=8, num_heads=1, enable_amp=False)
            block.F, block.G = (Halved(each) if self.half else each for each in (F, G))
            blocks.append(block)
        return lambda value: cast(Tensor, rev.RevBackProp.apply(value, blocks))

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


class Halved(nn.Module):
    """A function under autocast of its own, for a peer that replays it outside of any."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        """As the function."""
        with torch.autocast(value.device.type, torch.bfloat16):
            return cast(Tensor, self.function(value))


class Momentum:
    """v = gamma*v + (1 - gamma)*F(x), x += v."""

    spec, sizes = "rev_vit_b", SIZES
    settings = (
        "stages.trunk={coupling: momentum, functions: "
        "{F: [layer_norm, mlp: {ratio: 4}], G: null}, constants: {gamma: 0.9}}",
    )

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.stem, self.stage = network.stem, cast(Stage, network.stages[0])
        self.functions = [layer.F for layer in self.stage.layers]

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return cast(Tensor, self.stem(images)).detach()

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: of all the same."""
        return list(self.stage.layers.parameters())

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


class ViT:
    """torchvision's, with weights that ours and timm's take over."""

    spec, settings = "vit_b", ()
    sizes: Mapping[str, tuple[str, ...]] = {
        "small": (
            "input={image: [3, 64, 64]}",
            "stem.0.patch_embed.patch=8",
            "stem.0.patch_embed.width=192",
            "stages.trunk.functions.F.1.attention.heads=3",
        ),
        "large": (),
    }

    def __init__(self, network: Network, arguments: argparse.Namespace) -> None:
        self.network = network
        size = VIT[arguments.size]
        self.theirs = torchvision.models.VisionTransformer(
            size["image"],
            size["patch"],
            arguments.depth,
            size["heads"],
            size["width"],
            4 * size["width"],
        )
        nn.init.normal_(self.theirs.heads.head.weight, std=0.02)
        self.theirs.to(next(network.parameters()).device).train()
        found = convert(self.theirs.state_dict(), weights_of(network))
        network.load_state_dict(found)
        self.size, self.depth = size, arguments.depth

    def enter(self, images: Tensor) -> Tensor:
        """What goes in."""
        return images

    def parameters(self, body: Body) -> list[nn.Parameter]:
        """That get gradients: each contender has its own."""
        module = body if isinstance(body, nn.Module) else self.network
        return list(module.parameters())

    def contenders(self) -> dict[str, Callable[[], Body]]:
        """What makes each of them."""
        return {
            "stored": lambda: self.theirs,
            "archspec, stored": lambda: self._ours("store"),
            "archspec, checkpoint": lambda: self._ours("checkpoint"),
            "timm, checkpointed": self._timm,
        }

    def _ours(self, strategy: str) -> Body:
        def body(value: Tensor) -> Tensor:
            self.network.set_backward(strategy)
            return cast(Tensor, self.network(value))

        return body

    def _timm(self) -> Body:
        import timm

        size = self.size
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=size["image"],
            patch_size=size["patch"],
            embed_dim=size["width"],
            depth=self.depth,
            num_heads=size["heads"],
        )
        device = next(self.network.parameters()).device
        names = paired(model.state_dict(), weights_of(self.network), new_head=False)
        ours = weights_of(self.network)
        model.load_state_dict({theirs: ours[name] for theirs, name in names.items()})
        model.set_grad_checkpointing(True)
        return cast(Body, model.to(device).train())


Kind = type[Rev] | type[Momentum] | type[ViT]


def ours(stage: Stage, strategy: str, results: int = 0) -> Body:
    """Our stage on streams that lie one behind the other."""

    def body(value: Tensor) -> Tensor:
        stage.set_backward(strategy, results=results)
        return torch.cat(stage(*value.chunk(2, -1)), -1)

    return body


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = [row for kind in (Rev, Momentum, ViT) for row in compare(kind, arguments, device)]
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
            found = step.gradients(value)
        except Exception as error:  # of a peer: its row says so
            row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        wanted = wanted or found
        compared = 1 if kind is ViT else len(wanted)
        row["gradient_error"] = gradient_error(found[:compared], wanted[:compared])
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
        with torch.autocast(value.device.type, torch.bfloat16, enabled=self.half):
            loss = self.body(leaf.clone()).float().square().mean()  # some take their input away
        loss.backward()  # type: ignore[no-untyped-call]
        return leaf

    def gradients(self, value: Tensor) -> list[Tensor]:
        """Of the input and of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        leaf = self(value)
        return [t.grad.clone() for t in (leaf, *self.parameters) if t.grad is not None]

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


def gradient_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float | None:
    """The largest relative error of a gradient; None where some are missing."""
    if len(found) != len(wanted):
        return None
    return max(float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True))


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
    parser.add_argument("--minrev", metavar="FOLDER", help="a checkout of minREV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
