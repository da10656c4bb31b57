"""archspec build --emit, and --allow-modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEC = """
archspec: 1
name: own
summary: A module of one's own
input: {features: [4]}
stages:
  trunk:
    depth: 2
    coupling: additive
    functions:
      F: [tanh]
      G: [module: blocks.Gated]
head: [linear: classes]
task: {classify: 3}
"""
GATED = "from torch import nn\nopen('imported', 'w')\n\nclass Gated(nn.Tanh):\n    pass\n"


def test_a_network_is_written_and_checks_itself(archspec, tmp_path: Path) -> None:
    done = archspec("build", "momrev_vit_digits", "--no-verify", "--emit", "model.py")
    assert done.returncode == 0, done.stderr
    assert "written: model.py" in done.stderr
    ran = subprocess.run(
        [sys.executable, "model.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("right\n")
    again = archspec("build", "rev_vit_digits", "--no-verify", "--emit", "model.py")
    assert again.returncode == 0
    assert "rev_vit_digits" in (tmp_path / "model.py").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.py"]


def test_a_file_of_the_users_is_not_replaced(archspec, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine = 1\n")
    done = archspec("build", "momrev_vit_digits", "--no-verify", "--emit", "model.py")
    assert done.returncode == 2
    assert "model.py is a file that archspec has not written" in done.stderr
    assert (tmp_path / "model.py").read_text() == "mine = 1\n"


@pytest.mark.parametrize("path", ["missing/model.py", "."])
def test_a_file_that_cannot_be_written(archspec, path: str) -> None:
    done = archspec("build", "momrev_vit_digits", "--no-verify", "--emit", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text(SPEC, encoding="utf-8")
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "blocks.py").write_text(GATED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("own")
def test_modules_run_only_where_they_are_allowed(archspec, tmp_path: Path) -> None:
    for command in ("check", "build"):
        done = archspec(command, "own.yaml")
        assert done.returncode == 2
        assert "own.yaml:12:11: error[E404]" in done.stderr
        assert "give --allow-modules blocks" in done.stderr
    assert not (tmp_path / "imported").exists()
    assert archspec("check", "own.yaml", "--allow-modules", "blocks").returncode == 0
    done = archspec("build", "own.yaml", "--allow-modules", "blocks")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    emitted = archspec("build", "own.yaml", "--allow-modules", "blocks", "--emit", "model.py")
    assert emitted.returncode == 2
    assert "blocks.Gated is a module of your own" in emitted.stderr
    assert not (tmp_path / "model.py").exists()


@pytest.mark.usefixtures("own")
def test_the_environment_may_allow_modules(archspec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHSPEC_ALLOW_MODULES", "other blocks")
    assert archspec("check", "own.yaml").returncode == 0
