"""docs/compare.md: the study that it shows is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from archspec.finding import zoo
from archspec.study import load_study
from runners.comparison.arms import open_arms

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


def test_the_study_of_the_page_opens(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "gammas.yaml"
    path.write_text(text, encoding="utf-8")
    arms = open_arms(load_study(path))
    assert [arm.label for arm in arms] == ["Rev-ViT", "gamma 0.5", "gamma 0.9"]


def test_the_shipped_studies_are_named() -> None:
    for path in (zoo() / "studies").glob("*.yaml"):
        assert f"`{path.stem}`" in PAGE or f" {path.stem}`" in PAGE


def test_published_reports_are_of_shipped_studies() -> None:
    for path in (ROOT / "docs" / "studies").glob("*/report.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        study = load_study(zoo() / "studies" / f"{path.parent.name}.yaml")
        assert report["name"] == study.name
        assert report["seeds"] >= study.seeds
        assert [row["label"] for row in report["rows"]] == [e.label for e in study.entrants]
        assert all(len(row["runs"]) == report["seeds"] for row in report["rows"])
