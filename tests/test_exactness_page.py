"""docs/exactness.md quotes what was measured, and its example runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_cost_is_quoted() -> None:
    found = result("exact_arithmetic_cpu.json")
    for case in dict.fromkeys(row["case"] for row in found["steps"]):
        exact, unwatched = (
            next(r for r in found["steps"] if (r["case"], r["variant"]) == (case, variant))
            for variant in ("exact reversible", "exact reversible, range not checked")
        )
        assert exact["gradients_equal_stored"]
        assert exact["ratio_to_float_reversible"] <= 1.25
        kept = [row for row in found["kept"] if row["case"] == case]
        assert all(row["within_a_word"] and row["inverse_equals_start"] for row in kept)
        few, many = (row["stored_bits"] / 8 for row in kept)
        ratios = (r["ratio_to_float_reversible"] for r in (exact, unwatched))
        quoted = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        assert re.search(rf"^\| {case} \|.*\| {quoted} \| {few:g} \| {many:g} \|$", PAGE, re.M), (
            case
        )


def test_the_experiment_is_quoted() -> None:
    found = result("exact_training_follow.json")
    for run in ("float store", "float reversible", "exact store", "exact reversible"):
        row = rf"\| {run.replace(' store', ', stored').replace(' rev', ', rev')} \| "
        assert re.search(row + f"{found['losses'][run][-1]:.2f} ", PAGE), run
    steps = found["equal_steps"]
    assert steps["exact reversible - exact store"] == found["steps"] == 100
    assert steps["float reversible - float store"] == 0


def test_the_accuracy_is_quoted() -> None:
    found = result("exact_training_seeds.json")
    for arithmetic in ("float", "exact"):
        score = found["test_accuracy"][arithmetic]
        assert (
            f"{100 * score['mean']:.2f}% ± {100 * score['deviation']:.2f} in {arithmetic}" in PAGE
        )
    apart = found["exact_minus_float"]
    assert f"{100 * apart['mean']:.2f} ± {100 * apart['standard_error']:.2f}" in PAGE


def test_the_drift_is_quoted() -> None:
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    worst = result("drift_prediction.json")["worst"].values()
    factor = max(row["factor"] for row in worst)
    linear = max(row["linear_factor_at_smallest_gain"] or 0 for row in worst)
    along = max(row["worst_factor"] for row in worst)
    said = [
        float(x) for x in re.findall(r"factor of (\d+\.\d)|within (\d+\.\d)", page) for x in x if x
    ]
    assert said == [math.ceil(10 * factor) / 10, math.ceil(10 * linear) / 10]
    assert f"off by up to {along:.0f}" in page


def test_the_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)
    for back, stream in zip(scope["back"], scope["streams"], strict=True):
        assert back.equal((stream * 2**14).round() / 2**14)
