"""Where the result of a benchmark goes, and what it says of how it was made."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import archspec
from runners.devices import device_name

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
"""What the documentation quotes: each file says with which command it was made."""
SETTINGS = ("spec", "size", "depth", "batch", "precision", "width", "tokens")
"""Options that a result depends on."""
ELSEWHERE = BENCHMARKS.parent / "runs" / "benchmarks"


def write_rows(
    name: str,
    rows: Sequence[Mapping[str, object]],
    device: torch.device | str,
    arguments: argparse.Namespace | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """As `write_result`, of rows that were measured on a device (or predicted, as a text says),
    with the options that they depend on."""
    settings = {n: v for n, v in vars(arguments or argparse.Namespace()).items() if n in SETTINGS}
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "device": device if isinstance(device, str) else device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "archspec": archspec.__version__}
        | dict(versions or {}),
        **settings,
        "rows": rows,
    }
    return write_result(name, json.dumps(result, indent=2) + "\n")


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
