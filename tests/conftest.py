"""What tests of the language and of its checks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from archspec.diagnostics import SpecError
from archspec.loading import load
from compiler.resolve import resolve

Explain = Callable[..., str]


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Loads and resolves the text of a spec, with settings: what its errors say, or nothing."""
    monkeypatch.chdir(tmp_path)

    def explained(text: str, *settings: str) -> str:
        Path("spec.yaml").write_text(text, encoding="utf-8")
        try:
            resolve(load("spec.yaml", settings))
        except SpecError as error:
            return str(error)
        return ""

    return explained
