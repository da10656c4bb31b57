"""The report that is in a study's folder already: another replaces it only if it has all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from archspec.diagnostics import Diagnostic, SpecError
from runners.comparison.arms import Arm


def check_report(arms: Sequence[Arm], seeds: int, baseline: Arm, folder: Path) -> None:
    """Refuse a folder whose report has what a new one would leave out. Raises `SpecError`."""
    path = folder / "report.json"
    if not path.is_file():
        _refuse_others(folder)
        return
    help = "choose another folder with --output, or remove this file; the folder's runs stay"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lost = list(_lost(found, arms, seeds, baseline))
    except (ValueError, KeyError, TypeError):
        message = f"{path} is not a comparison's report"
        raise SpecError([Diagnostic("E604", message, None, help)]) from None
    if lost:
        message = f"{path} has what the new report would not: {', '.join(lost)}"
        raise SpecError([Diagnostic("E604", message, None, f"ask for that too, {help}")])


def _refuse_others(folder: Path) -> None:
    """A study is written into a folder of its own."""
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    own = re.compile(r"\..*|runs|report\..*|.*\.svg|inversion_.*\.png")
    if strange := [name for name in there if not own.fullmatch(name)]:
        message = f"{folder} is no study and holds {strange[0]}"
        raise SpecError([Diagnostic("E604", message, None, "choose another folder with --output")])


def _lost(found: dict[str, Any], arms: Sequence[Arm], seeds: int, baseline: Arm) -> Iterator[str]:
    labels = {arm.label for arm in arms}
    yield from (row["label"] for row in found["rows"] if row["label"] not in labels)
    if found["seeds"] > seeds:
        yield f"{found['seeds']} seeds"
    if found["baseline"] != baseline.label:
        yield f"the baseline {found['baseline']}"
