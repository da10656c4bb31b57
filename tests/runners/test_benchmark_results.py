"""A benchmark run with other options leaves the result that the documentation quotes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "result_file.py"


def test_only_the_same_command_replaces_a_result(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("result_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results, elsewhere = tmp_path / "results", tmp_path / "runs"

    def write(command: str, value: int) -> Path:
        text = json.dumps({"command": command, "value": value})
        written: Path = module.write_result("mine", text, results, elsewhere)
        return written

    kept = results / "mine.json"
    assert write("python mine.py", 1) == kept
    assert write("python mine.py --short", 2) == elsewhere / "mine.json"
    assert json.loads(kept.read_text())["value"] == 1
    assert write("python mine.py", 3) == kept
    assert json.loads(kept.read_text())["value"] == 3
