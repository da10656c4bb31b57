"""docs/performance.md is what its script writes from the results that are there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from performance_page import files

    yield files(ROOT / "benchmarks" / "results")
    sys.modules.pop("performance_page")


def test_the_page_is_of_its_results(written: dict[str, str]) -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page == written["performance.md"]


def test_every_plot_is_there(written: dict[str, str]) -> None:
    """Plots of another matplotlib may differ in their letters."""
    for name in written:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert name == "performance.md" or text.startswith("<svg")
