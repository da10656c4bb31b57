"""docs/authoring.md: its commands run, in order; what it quotes is printed; its numbers have a
source."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "authoring.md").read_text(encoding="utf-8")
CHAPTERS = PAGE.split("\n# Three couplings")
BLOCK = re.compile(r"^```(\w+)\n(.+?)^```", re.MULTILINE | re.DOTALL)
RESULT: Any = json.loads(
    (ROOT / "benchmarks" / "results" / "authoring.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Command:
    """A line behind `$`, the output quoted below it, and the exit code that `echo $?` shows."""

    line: str
    quoted: str
    code: int


def commands(console: str) -> Iterator[Command]:
    said = re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    for index, (line, quoted) in enumerate(said):
        if line != "echo $?":
            after = said[index + 1] if index + 1 < len(said) else ("", "")
            yield Command(line, quoted, int(after[1]) if after[0] == "echo $?" else 0)


def in_page(page: str) -> list[Command]:
    return [
        one for kind, text in BLOCK.findall(page) if kind == "console" for one in commands(text)
    ]


def check(command: Command, archspec: Any) -> None:
    """Runs it, a training for one epoch only: its exit code, and what is quoted, but for `…`."""
    program, *arguments = shlex.split(command.line)
    assert program == "archspec"
    if arguments[0] == "train":
        arguments += ["--set", "train.epochs=1", "--quiet"]
    done = archspec(*arguments)
    printed = (done.stdout + done.stderr).replace("\\", "/")  # paths on Windows
    printed = re.sub(r" +$", "", printed, flags=re.MULTILINE)
    assert done.returncode == command.code, f"{command.line}\n{printed}"
    for piece in command.quoted.split("…"):
        assert piece.strip() in printed, f"{command.line}\n{piece}\n{printed}"


def change(diff: str, file: Path) -> None:
    """Puts the lines with a plus in the place of those with a minus, which are there once."""
    old, new = (
        "".join(f"{line[1:]}\n" for line in diff.splitlines() if line.startswith(sign))
        for sign in "-+"
    )
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=["equation", "couplings"])
def test_a_reader_who_follows_it_sees_what_it_shows(chapter: str, archspec, tmp_path: Path) -> None:
    for kind, text in BLOCK.findall(chapter):
        if kind == "yaml":
            name = text.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif kind == "diff":
            change(text, tmp_path / "my_variant.yaml")
        else:
            assert kind == "console"
            for command in commands(text):
                check(command, archspec)


def test_the_examples_are_whole_and_new() -> None:
    files = [yaml.safe_load(text) for kind, text in BLOCK.findall(PAGE) if kind == "yaml"]
    shipped = [
        yaml.safe_load(path.read_text(encoding="utf-8"))["update"]
        for path in (ROOT / "specs" / "couplings").glob("*.yaml")
    ]
    updates = [
        file.get("update") or stage["update"]
        for file in files
        for stage in file.get("stages", {"": {}}).values()
        if "update" in file or "update" in stage
    ]
    assert len(updates) == 3
    assert [update for update in updates if update in shipped] == []


def test_the_accuracies_are_quoted() -> None:
    lines = {command.line for command in in_page(PAGE)}
    for network in RESULT["networks"]:
        assert network["command"] in lines
        percent = [100 * run["test_accuracy"] for run in network["runs"]]
        each = " ".join(f"{value:.2f}" for value in percent)
        mean, deviation = statistics.mean(percent), statistics.stdev(percent)
        row = f"| `{network['name']}` | {network['parameters']:,} | {each} "
        assert f"{row}| {mean:.2f} ± {deviation:.2f} |" in PAGE, network["name"]
        assert [run["seed"] for run in network["runs"]] == list(range(5))


def test_the_gains_are_quoted() -> None:
    lines = [command.line for command in in_page(PAGE)]
    for name, found in RESULT["gains"].items():
        assert any(line.startswith(found["command"]) for line in lines), name
        section = PAGE.partition(f"$ {found['command']}")[2].partition("\n## ")[0]
        assert re.search(rf"gain[a-z ,]* is {found['gain']:.1f}\b", section), name


def test_what_is_concluded_is_what_was_measured() -> None:
    means = {
        network["name"]: statistics.mean(100 * run["test_accuracy"] for run in network["runs"])
        for network in RESULT["networks"]
    }
    base = means.pop("rev_vit_digits")
    above = {name: mean - base for name, mean in means.items() if name != "my_gated_vit"}
    assert f"{min(above.values()):.1f} to {max(above.values()):.1f} points above" in PAGE
    least, most = (RESULT["gammas"][end] for end in ("least", "most"))
    assert f"between {least:.2f} and {most:.2f}," in PAGE
