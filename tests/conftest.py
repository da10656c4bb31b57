"""What tests of the language and of its checks share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# Workers of pytest share the cores: threads that wait for one another across them take ten times as
# long. The processes that tests start get as many, since sums depend on it in their last bits.
# Set before torch is imported, which reads it then.
os.environ["OMP_NUM_THREADS"] = "1"

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


# --hypothesis-profile=quick: without shrinking, which may take minutes.
settings.register_profile("quick", phases=[Phase.explicit, Phase.generate])
