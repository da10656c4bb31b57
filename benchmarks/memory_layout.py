"""Steps of convolutional networks with kernels contiguous and channels last, side by side.

    python benchmarks/memory_layout.py
    python benchmarks/memory_layout.py --device cuda --precision bf16

The same weights and batch take one training step in each layout in turn; the result is the median
of ratios within repeats. On a CPU seconds are those of the process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping

import torch
from result_file import write_result
from torch import Tensor

import archspec
from archspec.loading import Loaded, load
from compiler.network import build
from compiler.resolve import resolve
from runners.devices import open_fabric
from runners.layout import channels_last_where_it_pays
from runners.loop import take_step
from runners.parts import Parts, set_up
from runners.tasks import open_task
from runners.train import recipe_and_data

BATCHES: Mapping[str, int] = {
    "revnet38_cifar10": 32,
    "resnet32_cifar10": 32,
    "momentum_resnet32_cifar10": 32,
    "hamiltonian74_cifar10": 16,
    "irevnet_cifar10": 8,
    "resnet18": 4,
    "revnet104": 2,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, batch in BATCHES.items():
        precision = f"train.precision={arguments.precision}"
        loaded = load(name, (f"train.batch={batch * arguments.times}", precision))
        row = measure(name, loaded, device, arguments.repeats)
        print(f"{name:28} {row['ratio']:.3f}, chosen: {row['chosen']}")
        rows.append(row)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "archspec": archspec.__version__},
        "precision": arguments.precision,
        "rows": rows,
    }
    write_result(f"memory_layout_{device}", json.dumps(result, indent=2))


def measure(name: str, loaded: Loaded, device: str, repeats: int) -> dict[str, object]:
    """One network in both layouts."""
    recipe, _ = recipe_and_data(loaded)
    task = open_task(loaded)
    arms = {layout: parts_of(loaded, layout, device) for layout in LAYOUTS}
    batch = batch_of(loaded, recipe.batch, device)
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for repeat in range(repeats + 1):
        for layout, parts in list(arms.items())[:: 1 if repeat % 2 else -1]:
            began = now(device)
            take_step(parts, task, recipe, batch)
            if repeat:  # the first one warms up
                seconds[layout].append(now(device) - began)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    kernels = channels_last_where_it_pays(build(resolve(loaded))).state_dict().values()
    chosen = any(not k.is_contiguous() for k in kernels if k.dim() == 4)
    return {
        "spec": name,
        "batch": recipe.batch,
        **{f"{layout}_ms": 1000 * statistics.median(s) for layout, s in seconds.items()},
        "ratio": statistics.median(ratios),
        "chosen": "channels_last" if chosen else "contiguous",
    }


def parts_of(loaded: Loaded, layout: str, device: str) -> Parts:
    recipe, _ = recipe_and_data(loaded)
    torch.manual_seed(0)
    model = build(resolve(loaded)).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    parts = set_up(open_fabric(loaded, recipe, device), model, recipe)
    parts.wrapped.train()
    return parts


def batch_of(loaded: Loaded, size: int, device: str) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    sizes, classes = loaded.spec.input.shape.sizes, loaded.spec.task.sizes["classes"]
    images = torch.randn(size, *sizes, generator=source)
    return images.to(device), torch.randint(0, classes, (size,), generator=source).to(device)


def now(device: str) -> float:
    """Seconds, when all that was asked for is done."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--times", type=int, default=1, help="batches so many times as large")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--device", choices=("cpu", "cuda"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
