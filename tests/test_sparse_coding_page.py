"""docs/sparse_coding.md quotes what was measured, and the spec that was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from archspec.loading import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sparse_coding.md").read_text(encoding="utf-8")
RESULT: Any = json.loads(
    (ROOT / "benchmarks" / "results" / "sparse_coding.json").read_text(encoding="utf-8")
)


def test_coming_to_rest_is_quoted() -> None:
    for variant, found in RESULT["at_ista"].items():
        at = found["evaluations"].index(20)
        above, last = found["suboptimality"][at], found["suboptimality"][-1]
        row = f"| {variant} | {above:.1e} | {last:.1e} | {found['residual'][-1]:.1e} |"
        assert row in PAGE
        assert found["evaluations"][-1] == 400
        assert (last < 1e-5) == (found["residual"][-1] < 1e-4) == (variant != "RevNet")


def test_the_trained_networks_are_quoted() -> None:
    found = RESULT["test_suboptimality"]
    for variant, score in found.items():
        assert f"| {variant} | {score['mean']:.4f} ± {score['deviation']:.4f} |" in PAGE
    factor = found["RevNet"]["mean"] / found["LISTA"]["mean"]
    assert f"is {factor:.0f} times further from the optimum than LISTA" in PAGE
    seeds = {row["seed"] for row in RESULT["trained"]}
    assert f"over {len(seeds)} seeds" in PAGE
    residual = RESULT["at_ista"]["RevNet"]["residual"]
    growth = (residual[-1] / residual[99]) ** (1 / (len(residual) - 100))
    assert f"by a factor of {growth:.1f} in each layer" in PAGE
    assert len({row["parameters"] for row in RESULT["trained"]}) == 1


def test_the_result_is_of_the_shipped_specs() -> None:
    spec = load("lista").spec
    assert spec.data is not None
    assert spec.train is not None
    for part in ("task", "data", "train"):
        written = getattr(spec, part).model_dump(mode="json")
        assert {key: written[key] for key in RESULT[part]} == RESULT[part]


def test_the_spec_is_quoted() -> None:
    (block,) = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    quoted, spec = yaml.safe_load(block), load("momentum_lista").tree.plain()
    assert quoted["task"] == spec["task"]
    assert quoted["data"] == spec["data"]
    trunk = spec["stages"]["trunk"]
    assert {key: trunk[key] for key in quoted["stages"]["trunk"]} == quoted["stages"]["trunk"]
