"""The README says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from archspec.finding import zoo
from archspec.loading import load
from archspec.tree import MAX_CHARACTERS, MAX_NODES
from compiler.emission import emit
from compiler.resolve import resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.+?)```", README, re.DOTALL)


def test_the_table_of_couplings_quotes_the_files() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`[a-z_0-9`, ]+) \| (.+) \|$", README, re.MULTILINE)
    named = {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    shipped = {path.stem: yaml.safe_load(path.read_text()) for path in zoo().glob("couplings/*")}
    assert named == set(shipped)
    for names, text in rows:
        quoted = re.findall(r"`([^`]+)`", text)
        updates = [shipped[name]["update"] for name in re.findall(r"`(\w+)`", names)]
        assert any(update[: len(quoted)] == quoted for update in updates), names


def test_the_zoo_that_it_points_to_is_complete() -> None:
    assert "(docs/zoo.md)" in README
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in zoo().glob("*.yaml"))


def test_no_placeholders_are_left() -> None:
    assert not re.findall(r"@[A-Z]+@", README)


def test_the_benchmark_table_quotes_its_result() -> None:
    linked = re.search(r"\]\((benchmarks/results/\S+\.json)\)", README)
    assert linked
    rows = json.loads((ROOT / linked[1]).read_text(encoding="utf-8"))["rows"]
    for row in rows:
        quoted = (
            f"| {row['depth']} | {row['strategy']} | {row['peak_bytes'] / 1e6:.1f} "
            f"| {row['peak_ratio']:.2f} | {row['step_ratio']:.2f} |"
        )
        assert quoted in README, quoted


def test_the_emitted_layer_is_quoted() -> None:
    loaded = load("momrev_vit_digits")
    lines = {line.strip() for line in emit(resolve(loaded), loaded.spec).splitlines()}
    block = next(b for b in PYTHON if b.startswith("def forward"))
    assert [line for line in block.splitlines() if line.strip() not in lines] == []


def test_the_language_quotes_the_fuzz_run_and_its_limits() -> None:
    language = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks" / "results" / "fuzz_specs.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    outcomes, most = run["outcomes"], f"{run['most_bytes'] / 1e6:.0f} MB to check"
    small = outcomes["built and verified"] + outcomes["built, not verified"]
    assert run["broken"] == []
    assert sum(outcomes.values()) == run["count"] >= 10_000
    for quoted in (
        f"Of {run['count']:,} mutated spec files (`{run['command']}`",
        f"{outcomes['refused']:,} were refused with a place for every mistake",
        f"of the {outcomes['accepted'] + small:,} accepted, {small:,} were small enough",
        f"of which {outcomes['built and verified']:,} were verified",
        f"and {outcomes['built, not verified']} failed their verification",
        f"none took longer than {run['slowest']['seconds']:.2f} s or more than {most}",
        f"at most {MAX_CHARACTERS:,} characters and {MAX_NODES:,} values together",
    ):
        assert quoted in language, quoted


def test_the_python_example_runs() -> None:
    block = next(b for b in PYTHON if b.startswith("import torch"))
    names: dict[str, Any] = {}
    exec(block, names)
    for start, back in zip(names["streams"], names["back"], strict=True):
        torch.testing.assert_close(back, start, rtol=1e-4, atol=1e-4)
