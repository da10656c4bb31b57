"""An installation that is not editable has every package."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {
        path.parent
        for top in project["tool"]["mypy"]["packages"]
        for path in (ROOT / top).rglob("*.py")
    }
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found <= set(project["tool"]["setuptools"]["packages"])
