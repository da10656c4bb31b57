"""Training with exact arithmetic beside training in floating point.

    python benchmarks/exact_training.py follow    # does the reversible run follow the stored one?
    python benchmarks/exact_training.py seeds     # does exact arithmetic cost accuracy?
    python benchmarks/exact_training.py plot      # docs/exactness_training.svg, from `follow`

`follow` trains a momentum Rev-ViT on digits four times at once, from the same weights and on the
same batches: float and exact arithmetic, each with stored activations and with the reversible
backward pass. At gamma 0.5 and depth 48 a float inverse amplifies rounding by 2^48. After each step
the weights of each reversible run are compared with those of the stored run of its arithmetic.

`seeds` trains the spec as it is shipped, in float and in exact arithmetic, over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from result_file import RESULTS, write_result
from torch import Tensor
from torch.nn import functional as F

import archspec
from archspec.loading import load
from archspec.training import Train
from compiler.base_network import set_progress
from runners.data import Data, Reading, open_data, read, shuffled
from runners.devices import open_fabric
from runners.optim import learning_rate, set_learning_rate
from runners.parts import Parts
from runners.tasks import Batch
from runners.train import build_model, recipe_and_data, set_up, train

SPEC = "momrev_vit_digits"
EXACT = "stages.trunk.arithmetic=exact"
RUNS = ("float store", "float reversible", "exact store", "exact reversible")
PAIRS = (
    ("float reversible", "float store"),
    ("exact reversible", "exact store"),
    ("exact store", "float store"),
)
"""Runs whose weights are compared; the last pair says how far rounding alone takes two runs."""
PLOT = Path(__file__).parents[1] / "docs" / "exactness_training.svg"


def main() -> None:
    """Run one part."""
    arguments = parse_arguments()
    if arguments.part == "plot":
        plot(json.loads((RESULTS / "exact_training_follow.json").read_text()), PLOT)
        return
    part = follow if arguments.part == "follow" else over_seeds
    result = {**header(), **part(arguments)}
    write_result(f"exact_training_{arguments.part}", compact(json.dumps(result, indent=2)) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("follow", "seeds", "plot"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--depth", type=int, default=48)
    parser.add_argument("--gamma", default="0.5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def header() -> dict[str, Any]:
    """What was run, and on what."""
    return {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "spec": SPEC,
    }


def compact(text: str) -> str:
    """JSON with each list of numbers on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)


# Following the stored run -------------------------------------------------------------------------


@dataclass
class Followed:
    """One of the runs that go side by side."""

    parts: Parts
    losses: list[float] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        """Whether its last loss was a number."""
        return not self.losses or math.isfinite(self.losses[-1])

    def weights(self) -> Tensor:
        """All parameters in one row."""
        return torch.cat([p.detach().flatten() for p in self.parts.model.parameters()])


def follow(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the runs together, and compare their weights after each step."""
    settings = [
        f"stages.trunk.constants.gamma={arguments.gamma}",
        f"stages.trunk.depth={arguments.depth}",
    ]
    recipe, data, device = prepared(settings, arguments.device)
    runs = {name: start(name, settings, arguments.device) for name in RUNS}
    distances: dict[str, list[float]] = {" - ".join(pair): [] for pair in PAIRS}
    equal: dict[str, list[bool]] = {" - ".join(pair): [] for pair in PAIRS}
    began = time.perf_counter()
    for number, batch in enumerate(batches(data, recipe, device, arguments.steps)):
        rate = learning_rate(recipe, number, steps_per_epoch(data, recipe))
        for run in runs.values():
            if run.is_alive:
                run.losses.append(step(run.parts, recipe, rate, *batch))
        for one, other in PAIRS:
            here, there = runs[one].weights(), runs[other].weights()
            distances[f"{one} - {other}"].append(float((here - there).norm() / there.norm()))
            equal[f"{one} - {other}"].append(torch.equal(here, there))
        losses = "  ".join(f"{run.losses[-1]:.6f}" for run in runs.values())
        print(number + 1, losses, [f"{d[-1]:.1e}" for d in distances.values()], flush=True)
    return {
        "settings": settings,
        "depth": arguments.depth,
        "gamma": float(arguments.gamma),
        "steps": arguments.steps,
        "batch": recipe.batch,
        "seconds": time.perf_counter() - began,
        "losses": {name: as_json(run.losses) for name, run in runs.items()},
        "distances": {pair: as_json(values) for pair, values in distances.items()},
        "equal_steps": {pair: sum(values) for pair, values in equal.items()},
        "first_unequal_step": {
            pair: values.index(False) + 1 if False in values else None
            for pair, values in equal.items()
        },
    }


def prepared(settings: Sequence[str], device: str) -> tuple[Train, Data, torch.device]:
    """The recipe of the spec, its data, and the device."""
    loaded = load(SPEC, settings)
    recipe, entry = recipe_and_data(loaded)
    fabric = open_fabric(loaded, recipe, device)
    return recipe, open_data(loaded, entry, recipe.seed), fabric.device


def start(name: str, settings: Sequence[str], device: str) -> Followed:
    """A run at its beginning: the weights are those of the spec's seed, whatever the name."""
    arithmetic, backward = name.split()
    loaded = load(SPEC, [*settings, *([EXACT] if arithmetic == "exact" else [])])
    recipe, _ = recipe_and_data(loaded)
    torch.manual_seed(recipe.seed)
    model: Any = build_model(loaded)
    model.set_backward(backward)
    return Followed(set_up(open_fabric(loaded, recipe, device), model, recipe))


def steps_per_epoch(data: Data, recipe: Train) -> int:
    """How many batches an epoch has."""
    return len(shuffled(data.training, recipe.batch, recipe.seed, 0))


def batches(data: Data, recipe: Train, device: torch.device, count: int) -> Iterator[Batch]:
    """The first batches of training, augmented as the recipe says."""
    torch.manual_seed(recipe.seed)

    def endless() -> Iterator[Batch]:
        for epoch in itertools.count():
            order = shuffled(data.training, recipe.batch, recipe.seed, epoch)
            yield from read(data.training, order, device, Reading(recipe.seed, epoch))

    return itertools.islice(endless(), count)


def step(parts: Parts, recipe: Train, rate: float, images: Tensor, labels: Tensor) -> float:
    """One step of training, as `archspec train` takes it; the loss before it."""
    parts.wrapped.train()
    set_progress(parts.model, 0.0)
    set_learning_rate(parts.optimizer, rate)
    logits = parts.wrapped(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    parts.optimizer.zero_grad()
    parts.fabric.backward(loss)
    if recipe.clip is not None:
        parts.fabric.clip_gradients(
            parts.wrapped, parts.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
        )
    parts.optimizer.step()
    return loss.item()


def as_json(values: Sequence[float]) -> list[float | None]:
    """What is no number is none."""
    return [value if math.isfinite(value) else None for value in values]


# Over seeds ---------------------------------------------------------------------------------------


def over_seeds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the spec as it is, in both arithmetics, with each seed."""
    rows = []
    for seed in range(arguments.seeds):
        for arithmetic in ("float", "exact"):
            rows.append(trained(arithmetic, seed, arguments.device))
            print(rows[-1], flush=True)
    by = {
        name: [row["test_accuracy"] for row in rows if row["arithmetic"] == name]
        for name in ("float", "exact")
    }
    differences = [e - f for e, f in zip(by["exact"], by["float"], strict=True)]
    return {
        "rows": rows,
        "test_accuracy": {name: mean_and_deviation(values) for name, values in by.items()},
        "exact_minus_float": {
            **mean_and_deviation(differences),
            "standard_error": deviation(differences) / math.sqrt(len(differences)),
        },
    }


def trained(arithmetic: str, seed: int, device: str) -> dict[str, Any]:
    """The outcome of one run of `archspec train`."""
    settings = [f"train.seed={seed}", *([EXACT] if arithmetic == "exact" else [])]
    with tempfile.TemporaryDirectory() as folder:
        result = train(load(SPEC, settings), Path(folder) / "run", device=device, quiet=True)
    return {
        "arithmetic": arithmetic,
        "seed": seed,
        "test_accuracy": result.test_metric,
        "test_loss": result.test_loss,
        "validation_accuracy": result.validation_metric,
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 1),
    }


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": statistics.mean(values), "deviation": deviation(values)}


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


# The plot -----------------------------------------------------------------------------------------

LOWEST = 1e-9
"""Of the axis of distances: a distance of zero is drawn there."""
LOOKS: dict[str, dict[str, Any]] = {
    "float store": {"color": "tab:blue", "linestyle": "-", "linewidth": 3, "alpha": 0.4},
    "float reversible": {"color": "tab:red", "linestyle": "-"},
    "exact store": {"color": "tab:green", "linestyle": "-", "linewidth": 3, "alpha": 0.4},
    "exact reversible": {"color": "black", "linestyle": ":"},
}


def plot(result: dict[str, Any], path: Path) -> None:
    """Losses by step, and how far weights are from those of the stored run."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "archspec"
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    for name, losses in result["losses"].items():
        left.plot(*curve(losses), label=name.replace("store", "stored"), **LOOKS[name])
    left.set(xlabel="step", ylabel="training loss")
    left.legend(fontsize="small")
    for pair, distances in result["distances"].items():
        one, other = (name.replace("store", "stored") for name in pair.split(" - "))
        steps, values = curve(distances)
        look = LOOKS[pair.split(" - ")[0]]
        right.plot(steps, [max(v, LOWEST) for v in values], label=f"{one} to {other}", **look)
    right.set(xlabel="step", ylabel="relative distance of the weights", yscale="log")
    right.set_ylim(LOWEST / 2)
    right.annotate("equal, bit for bit", (result["steps"] / 2, LOWEST * 1.5), ha="center")
    right.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.1))
    figure.suptitle(
        f"{result['spec']}, gamma {result['gamma']:g}, depth {result['depth']}, "
        f"batch {result['batch']}"
    )
    figure.savefig(path, format="svg", metadata={"Date": None})
    print(f"written to {path}")


def curve(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Steps and values, as far as these are numbers."""
    known = list(itertools.takewhile(lambda value: value is not None, values))
    return list(range(1, len(known) + 1)), [float(value) for value in known if value is not None]


if __name__ == "__main__":
    main()
