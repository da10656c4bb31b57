"""Predicted against measured drift, over couplings, depths, gains of the functions, and gammas.

    python benchmarks/drift_prediction.py                   # the whole grid, some minutes on a CPU
    python benchmarks/drift_prediction.py --depths 6,12 --couplings additive,momentum

Every invertible coupling that ships, as a small stage on tokens, its functions' results multiplied
by the gain. Factors are those of `compiler.drift.factor_apart`: errors below a step of float32
count as one step, and those past 0.3 as 0.3. The result is printed and written to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import yaml
from result_file import write_result
from torch import Tensor, nn

import archspec
from archspec.finding import zoo
from compiler.drift import Drift, drift, factor_apart, given_by
from compiler.network import Network

NOT_INVERTIBLE = ("residual", "residual_pair", "euler", "rk2", "rk4")
PAIRS = ("leapfrog", "verlet")
"""Couplings whose functions have the form -K^T s(K x + b)."""
GAMMAS = (0.5, 0.9, 0.99)
"""Of the couplings with a velocity that remembers."""


@dataclass(frozen=True)
class Case:
    """One stage."""

    coupling: str
    depth: int
    gain: float
    gamma: float | None


class Gained(nn.Module):
    """A function, its result multiplied by a number."""

    def __init__(self, function: nn.Module, gain: float) -> None:
        super().__init__()
        self.function, self.gain = function, gain

    def forward(self, value: Tensor) -> Tensor:
        """gain · function(value)"""
        result: Tensor = self.gain * self.function(value)
        return result


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [row for case in cases(arguments) for row in [measure(case, arguments)]]
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, 1 thread",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "seconds": time.perf_counter() - began,
        "tokens": arguments.tokens,
        "width": arguments.width,
        "batch": arguments.batch,
        "worst": worst(rows),
    }
    print_worst(result["worst"])
    write_result("drift_prediction", with_rows(json.dumps(result, indent=2), rows))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    found = sorted(path.stem for path in (zoo() / "couplings").glob("*.yaml"))
    invertible = [name for name in found if name not in NOT_INVERTIBLE]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--couplings", type=lambda text: text.split(","), default=invertible)
    parser.add_argument("--depths", type=numbers, default=[6, 12, 48, 200])
    parser.add_argument("--gains", type=numbers, default=[0.1, 1, 3, 6])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2)
    return parser.parse_args()


def numbers(text: str) -> list[float]:
    """`6,12` as numbers."""
    return [float(number) for number in text.split(",")]


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """The grid."""
    grid = itertools.product(arguments.couplings, arguments.depths, arguments.gains)
    for coupling, depth, gain in grid:
        for gamma in GAMMAS if coupling.startswith("momentum") else (None,):
            yield Case(coupling, int(depth), gain, gamma)


def network(case: Case, arguments: argparse.Namespace) -> Network:
    """A network of one such stage, whose functions are those of its initialisation, with gain."""
    described = yaml.safe_load((zoo() / "couplings" / f"{case.coupling}.yaml").read_text())
    layers = [{"transpose_pair": {"activation": "tanh"}}]
    stage = {
        "depth": case.depth,
        "coupling": case.coupling,
        "functions": dict.fromkeys(
            described["functions"],
            layers if case.coupling in PAIRS else ["layer_norm", {"mlp": 2}],
        ),
        "constants": {} if case.gamma is None else {"gamma": case.gamma},
    }
    torch.manual_seed(0)
    model = archspec.build(
        {
            "archspec": 1,
            "name": "drifting",
            "summary": "One stage on tokens",
            "input": {"tokens": [arguments.tokens, arguments.width]},
            "stem": ["layer_norm"],
            "stages": {"trunk": stage},
            "head": [{"pool": "mean"}, {"linear": "classes"}],
            "task": {"classify": 3},
        }
    )
    for layer in model.stages[0].layers:
        for name, function in layer.by_name().items():
            setattr(layer, name, Gained(function, case.gain))
    return model


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, object]:
    """The errors after the whole stage is undone, and how far they are apart."""
    model = network(case, arguments)
    torch.manual_seed(1)
    inputs = torch.randn(arguments.batch, arguments.tokens, arguments.width)
    found = drift(model.stages[0], given_by(model, inputs)["trunk"])
    row = asdict(case) | {
        "float32": finite(found.float32[-1]),
        "predicted": finite(found.predicted[-1]),
        "linear": None if found.linear is None else finite(found.linear[-1]),
        "bfloat16": finite(found.bfloat16[-1]),
        **factors(found),
    }
    print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def finite(error: float) -> float | None:
    """To three digits; None for what JSON has no number for."""
    return float(f"{error:.3g}") if math.isfinite(error) else None


def factors(found: Drift) -> dict[str, float | None]:
    """Prediction over measurement, or the other way round: after the whole stage, and the worst
    after any number of layers."""
    pairs = list(zip(found.predicted, found.float32, strict=True))
    linear = None if found.linear is None else factor_apart(found.linear[-1], found.float32[-1])
    return {
        "factor": round(factor_apart(*pairs[-1]), 2),
        "worst_factor": round(max(factor_apart(*pair) for pair in pairs), 2),
        "linear_factor": None if linear is None else round(linear, 2),
    }


def worst(rows: list[dict[str, object]]) -> dict[str, dict[str, float | None]]:
    """The largest factors of each coupling; those of the linear part at the smallest gain."""
    smallest = min(float(str(row["gain"])) for row in rows)

    def largest(coupling: object, key: str, gains: bool) -> float | None:
        mine = (row for row in rows if row["coupling"] == coupling)
        chosen = (row[key] for row in mine if gains or row["gain"] == smallest)
        return max((float(str(value)) for value in chosen if value is not None), default=None)

    return {
        str(coupling): {
            "factor": largest(coupling, "factor", True),
            "worst_factor": largest(coupling, "worst_factor", True),
            "linear_factor_at_smallest_gain": largest(coupling, "linear_factor", False),
        }
        for coupling in dict.fromkeys(row["coupling"] for row in rows)
    }


def with_rows(result: str, rows: list[dict[str, object]]) -> str:
    """A JSON object with its rows, one a line."""
    lines = ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows)
    opened = result.removesuffix("\n}")
    return f'{opened},\n  "rows": [\n    {lines}\n  ]\n}}\n'


def print_worst(found: object) -> None:
    """A table."""
    assert isinstance(found, dict)
    print(f"{'coupling':<24}{'at the end':>12}{'anywhere':>12}{'linear, small':>16}")
    for coupling, by in found.items():
        end, anywhere, linear = (
            "–" if factor is None else f"{factor:.1f}" for factor in by.values()
        )
        print(f"{coupling:<24}{end:>12}{anywhere:>12}{linear:>16}")


if __name__ == "__main__":
    main()
