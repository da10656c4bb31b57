"""Where the result of a benchmark goes."""

from __future__ import annotations

import json
from pathlib import Path

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
"""What the documentation quotes: each file says with which command it was made."""
ELSEWHERE = BENCHMARKS.parent / "runs" / "benchmarks"


def write_result(
    name: str, text: str, results: Path = RESULTS, elsewhere: Path = ELSEWHERE
) -> Path:
    """Write a JSON object that has its `command` into results/NAME.json, and say so. What another
    command has written there stays: the file then goes to runs/benchmarks/NAME.json."""
    path = results / f"{name}.json"
    if path.is_file() and _command(path.read_text(encoding="utf-8")) != _command(text):
        print(f"{path} is of another command, and stays as it is")
        path = elsewhere / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")
    return path


def _command(text: str) -> str:
    return str(json.loads(text)["command"])
