"""Predicted and measured memory of training steps, side by side.

    python benchmarks/predicted_memory.py                 # on a GPU
    python benchmarks/predicted_memory.py --device cpu --small

Networks are predicted on tensors that hold nothing and then trained for a few steps, at two
batches; the result is the ratio of the peaks and of what they grow by with each sample. It is
printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from result_file import write_rows

from archspec.loading import load
from archspec.training import Train
from compiler.resolve import resolve
from runners.devices import find_device
from runners.profile.report import Asked, Row, profile

BATCHES: Mapping[str, int] = {
    "vit_b": 64,
    "vit_l": 32,
    "rev_vit_s": 128,
    "rev_vit_b": 64,
    "rev_vit_l": 64,
    "momrev_vit_b": 64,
    "momrev_vit_l": 64,
    "rev_mvit_b": 32,
    "momrev_mvit_b": 32,
    "rev_dit_cifar10": 128,
    "momrev_dit_cifar10": 128,
    "glow_cifar10": 64,
}
SMALL: Mapping[str, int] = {
    "vit_digits": 64,
    "rev_vit_digits": 64,
    "momrev_vit_digits": 64,
    "rev_mvit_digits": 32,
}


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = find_device(arguments.device)
    rows = [
        row
        for precision in arguments.precisions
        for name, batch in (SMALL if arguments.small else BATCHES).items()
        for row in both_batches(name, batch, precision, device)
    ]
    size = "_small" if arguments.small else ""
    write_rows(f"predicted_memory_{device.type}{size}", rows, device)


def both_batches(
    name: str, batch: int, precision: str, device: torch.device
) -> list[dict[str, object]]:
    """A network by each strategy, at a batch and at half of it."""
    found = []
    halves = list(
        zip(*(rows(name, n, precision, device) for n in (batch // 2, batch)), strict=True)
    )
    for half, whole in halves:
        if half.measured is None or whole.measured is None or whole.predicted is None:
            continue
        assert half.predicted is not None
        slope = (whole.measured.peak - half.measured.peak) / (batch - batch // 2)
        predicted = (whole.predicted.peak - half.predicted.peak) / (batch - batch // 2)
        row = {
            "spec": name,
            "strategy": whole.schedule,
            "precision": precision,
            "batch": batch,
            "measured_peak": whole.measured.peak,
            "predicted_peak": whole.predicted.peak,
            "ratio": whole.predicted.peak / whole.measured.peak,
            "measured_per_sample": slope,
            "predicted_per_sample": predicted,
        }
        print(
            f"{name:18}{whole.schedule:14}{precision:6}{whole.measured.peak / 2**20:10.1f} MiB, "
            f"predicted {row['ratio']:.3f} of it; {slope / 1e6:.2f} MB a sample, "
            f"predicted {predicted / 1e6:.2f}"
        )
        found.append(row)
    return found


def rows(name: str, batch: int, precision: str, device: torch.device) -> list[Row]:
    """The rows of one network, without times."""
    recipe = Train(epochs=1, batch=batch, learning_rate=1e-4)
    recipe = recipe.model_copy(update={"precision": precision})
    asked = Asked(("store", "checkpoint", "reversible"), device, True, 0)
    found = list(profile(name, resolve(load(name)), recipe, asked, lambda line: None))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="networks for a CPU")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
