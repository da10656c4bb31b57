"""Learned ISTA, as it is, with momentum, and as a RevNet: does it come to rest, does it learn?

    python benchmarks/sparse_coding.py         # both parts, the result and the plot
    python benchmarks/sparse_coding.py plot    # the plot again, from the result

`at_ista`: with ISTA's weights in every layer, how far codes are from the Lasso's least objective
and how much they change, after each evaluation of a function, up to 400, in float64.

`trained`: the shipped specs, 20 evaluations deep, trained by `archspec train` with the recipe of
specs/lista.yaml, over seeds, each with a dictionary, samples and order of its own. Activations are
stored, which for exact arithmetic gives the same gradients and is faster for networks as small.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from result_file import RESULTS, write_result
from torch import Tensor

import archspec
from archspec.data import SparseCodes
from archspec.loading import Loaded, load
from archspec.training import SparseCode
from compiler import engine
from compiler.network import Network
from compiler.rounding import in_floats
from runners.lasso import Lasso, solve, start_at_ista
from runners.sparse_codes import dictionary, measured
from runners.train import train

STORED = ["stages.trunk.backward=store"]
GAMMA = "stages.trunk.constants.gamma="
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "LISTA": ("lista", []),
    "momentum, gamma 0.5": ("momentum_lista", STORED),
    "momentum, gamma 0.9": ("momentum_lista", [*STORED, GAMMA + "0.9"]),
    "RevNet": ("rev_lista", [*STORED, "stages.trunk.store_every=null"]),
}
CHECKED = 200
"""So many samples are followed at ISTA's weights."""
ROOT = Path(__file__).parents[1]
RESULT = RESULTS / "sparse_coding.json"
PLOT = ROOT / "docs" / "sparse_coding.svg"


def main() -> None:
    """Measure, write the result and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", nargs="?", choices=("all", "plot"), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=400)
    arguments = parser.parse_args()
    if arguments.part == "all":
        torch.set_num_threads(1)
        result = {
            **header(),
            "at_ista": {v: at_ista(v, arguments.evaluations) for v in VARIANTS},
            **trained(arguments.seeds),
        }
        if write_result(RESULT.stem, compact(json.dumps(result, indent=2)) + "\n") != RESULT:
            return
    plot(json.loads(RESULT.read_text()), PLOT)


def header() -> dict[str, Any]:
    """What was run, and on what."""
    spec = load("lista").spec
    assert spec.train is not None
    assert spec.data is not None
    return {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, 1 thread",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "task": spec.task.model_dump(mode="json"),
        "data": spec.data.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json"),
    }


def compact(text: str) -> str:
    """JSON with each list of numbers on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)


# Codes by layer -----------------------------------------------------------------------------------


def problem(loaded: Loaded, count: int, part: int) -> tuple[Lasso, Tensor]:
    """The Lasso of a spec and `count` of its measurements, in float64."""
    task, data = loaded.spec.task, loaded.spec.data
    assert isinstance(task, SparseCode)
    assert isinstance(data, SparseCodes)
    matrix = dictionary(data, *loaded.spec.input.shape.sizes, task.codes)
    return Lasso(matrix, task.penalty), measured(data, matrix, count, part)


@torch.no_grad()
def codes_by_layer(model: Network, measurements: Tensor) -> list[Tensor]:
    """What the network would give if it ended after 0, 1, 2, … layers, in floating point."""
    stage = model.stages[0]
    streams = stage.split(model.stem(measurements))
    values = dict(zip(stage.facts.streams, streams, strict=True))
    codes = [stage.merge(*values.values())]
    for layer in map(in_floats, stage.program()):
        values = engine.run([layer], values, [{}])
        codes.append(stage.merge(*values.values()))
    return codes


def followed(
    lasso: Lasso, measurements: Tensor, codes: Sequence[Tensor], evaluations: int
) -> dict[str, list[float]]:
    """Means over samples after each layer; `evaluations` of functions are one layer."""
    least = lasso.objective(measurements, solve(lasso, measurements))
    above = [float((lasso.objective(measurements, code) - least).mean()) for code in codes]
    moved = [float((after - before).norm(dim=1).mean()) for before, after in pairwise(codes)]
    return {
        "evaluations": list(range(0, evaluations * len(codes), evaluations)),
        "suboptimality": [rounded(x) for x in above],
        "residual": [rounded(x) for x in moved],
    }


def rounded(value: float) -> float:
    """With four digits."""
    return float(f"{value:.3e}")


def per_layer(loaded: Loaded) -> int:
    """How many functions a layer evaluates."""
    return len(loaded.spec.stages["trunk"].functions)


def at_ista(variant: str, evaluations: int) -> dict[str, list[float]]:
    """A deep network whose functions are all steps of ISTA."""
    spec, settings = VARIANTS[variant]
    loaded = load(spec, [*settings, "stages.trunk.share=true"])
    lasso, measurements = problem(loaded, CHECKED, 1)
    each = per_layer(loaded)
    depth = f"stages.trunk.depth={evaluations // each}"
    model = archspec.build(spec, [*settings, "stages.trunk.share=true", depth]).double()
    start_at_ista(model, lasso)
    return followed(lasso, measurements, codes_by_layer(model, measurements), each)


# Trained ------------------------------------------------------------------------------------------


def trained(seeds: int) -> dict[str, Any]:
    """Every variant with every seed."""
    rows = []
    for seed in range(seeds):
        for variant in VARIANTS:
            rows.append(one_run(variant, seed))
            print(variant, seed, rows[-1]["test"], rows[-1]["seconds"], flush=True)
    by = {v: [row["test"] for row in rows if row["variant"] == v] for v in VARIANTS}
    return {
        "trained": rows,
        "test_suboptimality": {
            variant: {"mean": rounded(statistics.mean(found)), "deviation": deviation(found)}
            for variant, found in by.items()
        },
    }


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of one value."""
    return rounded(statistics.stdev(values)) if len(values) > 1 else 0.0


def one_run(variant: str, seed: int) -> dict[str, Any]:
    """The outcome of one run of `archspec train`, and its codes by layer in the test."""
    spec, settings = VARIANTS[variant]
    settings = [*settings, f"train.seed={seed}", f"data.sparse_codes.problem={seed}"]
    loaded = load(spec, settings)
    with tempfile.TemporaryDirectory() as folder:
        result = train(loaded, Path(folder) / "run", device="cpu", quiet=True)
        model = archspec.build(loaded)
        safetensors.torch.load_model(model, Path(folder) / "run" / "best.safetensors")
    assert isinstance(loaded.spec.data, SparseCodes)
    lasso, measurements = problem(loaded, loaded.spec.data.tests, 1)
    codes = codes_by_layer(model.double(), measurements)
    return {
        "variant": variant,
        "seed": seed,
        "parameters": result.parameters,
        "test": rounded(result.test_metric),
        "validation": rounded(result.validation_metric),
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 1),
        "by_layer": followed(lasso, measurements, codes, per_layer(loaded)),
    }


# The plot -----------------------------------------------------------------------------------------

COLOURS = dict(zip(VARIANTS, ("black", "tab:blue", "tab:cyan", "tab:red"), strict=True))
HIGHEST = 1e4
"""Of the axes: what explodes leaves the picture."""


def plot(result: dict[str, Any], path: Path) -> None:
    """How far codes move and are from the least objective, at ISTA's weights; then trained."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seeds = len({row["seed"] for row in result["trained"]})
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    moved, above, learned = figure.subplots(1, 3)
    for variant, found in result["at_ista"].items():
        look = {"color": COLOURS[variant], "label": variant}
        moved.plot(*inside(found["evaluations"][1:], found["residual"]), **look)
        above.plot(*inside(found["evaluations"], found["suboptimality"]), **look)
    for row in result["trained"]:
        label = row["variant"] if row["seed"] == 0 else None
        by = row["by_layer"]
        learned.plot(
            by["evaluations"], by["suboptimality"], color=COLOURS[row["variant"]], label=label
        )
    moved.set(title="ISTA's weights", ylabel="change of the code in a layer")
    above.set(title="ISTA's weights", ylabel="objective above the least")
    learned.set(title=f"trained, {seeds} seeds", ylabel="objective above the least")
    for axes in (moved, above, learned):
        axes.set(xlabel="evaluations of F and G", yscale="log")
    above.legend(fontsize="small")
    with rc_context({"svg.hashsalt": "sparse_coding", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    print(f"written to {path}")


def inside(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """A curve as far as it stays in the picture."""
    pairs = [(s, v) for s, v in zip(steps, values, strict=True) if v <= HIGHEST]
    return [s for s, _ in pairs], [v for _, v in pairs]


if __name__ == "__main__":
    main()
