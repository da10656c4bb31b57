"""What two runs have in common that are the same."""

from __future__ import annotations

import json
from pathlib import Path

from runners.run_folder import TrainResult


def comparable(result: TrainResult) -> tuple[float, ...]:
    """Of a result, what no clock is in."""
    return result.test_metric, result.test_loss, result.validation_metric, result.best_epoch


def records(folder: Path) -> list[dict[str, object]]:
    """Of each epoch, what no clock is in."""
    clock = {"seconds", "data_seconds", "samples_per_second", "memory_bytes"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Two folders hold the same records, and the same weights bit for bit."""
    assert records(one) == records(other)
    for name in ("best.safetensors", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
