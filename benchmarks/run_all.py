"""Every benchmark that the documentation quotes, one after another.

    python benchmarks/run_all.py                  # what fits a CPU, some minutes each
    python benchmarks/run_all.py --device cuda    # at full size; then commit benchmarks/results/

Each writes its own file to benchmarks/results/. One that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS: Mapping[str, Sequence[str]] = {
    "cpu": (
        "memory_per_image.py",
        "predicted_memory.py --device cpu --small",
        "side_by_side.py",
        "frontier.py",
        "depth.py",
        "engine_overhead.py",
        "compiled_functions.py",
        "loop_overhead.py",
        "backward_strategies.py",
    ),
    "cuda": (
        "memory_per_image.py --device cuda",
        "predicted_memory.py",
        "side_by_side.py --size large --device cuda --precision bf16 --batch 64",
        "frontier.py --size full --device cuda --precision bf16 --batch 64",
        "frontier.py --spec momrev_vit_b --size full --device cuda --precision bf16 --batch 64",
        "compiled_functions.py --size full --device cuda --precision bf16 --batch 64",
        "depth.py --device cuda --width 1024 --tokens 196 --batch 32",
        "loop_overhead.py --device cuda --steps 100",
        "memory_layout.py --device cuda --precision bf16 --times 8",
        "exact_arithmetic.py --device cuda",
    ),
}
"""By the kind of device."""


def main() -> int:
    """Run them; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=tuple(COMMANDS), default="cpu")
    failed = 0
    for command in COMMANDS[parser.parse_args().device]:
        print(f"== python benchmarks/{command}", flush=True)
        began = time.monotonic()
        script, *arguments = command.split()
        done = subprocess.run([sys.executable, f"benchmarks/{script}", *arguments], cwd=HERE.parent)
        print(f"== {time.monotonic() - began:.0f} s, exit code {done.returncode}", flush=True)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
