"""Memory of the zoo's networks side by side: what a training step keeps, and its peak.

    python benchmarks/zoo_memory.py  # ViTs at CIFAR-10 size
    python benchmarks/zoo_memory.py resnet110_cifar10 revnet110_cifar10 --batch 16

Bytes are those of live tensors, parameters and gradients aside, divided by the batch. The result is
printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys

import torch
from result_file import write_result

import archspec
from compiler.memory import step_memory

DEFAULT = (
    "vit_cifar10",
    "rev_vit_cifar10",
    "momrev_vit_cifar10",
    "bdia_vit_cifar10",
)
WITHOUT_GRID = "bdia_vit_cifar10"
"""Also measured with floating-point streams."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    cases = [(name, ()) for name in arguments.names]
    if WITHOUT_GRID in arguments.names:
        cases.append((WITHOUT_GRID, ("stages.trunk.arithmetic=float",)))
    rows = [measure(name, settings, arguments.batch) for name, settings in cases]
    for row in rows:
        print(f"{row['spec']!s:<60}{row['kept_mb']:>10} MB kept{row['peak_mb']:>10} MB peak")
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, 1 thread",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "batch": arguments.batch,
        "megabytes_per_image": rows,
    }
    write_result("zoo_memory_cpu", json.dumps(result, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=DEFAULT, help="specs")
    parser.add_argument("--batch", type=int, default=32)
    return parser.parse_args()


def measure(name: str, settings: tuple[str, ...], batch: int) -> dict[str, object]:
    """One network's step, in float32 on the CPU."""
    network = archspec.build(name, settings)
    images = torch.randn(batch, *network.plan.input.sizes)
    found = step_memory(network, lambda logits: logits.float().logsumexp(1).sum(), images)
    return {
        "spec": " ".join((name, *settings)),
        "kept_mb": round(found.kept / batch / 1e6, 4),
        "peak_mb": round(found.peak / batch / 1e6, 4),
    }


if __name__ == "__main__":
    main()
