"""archspec build --emit, and --allow-modules."""

from __future__ import annotations

import json
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


def test_a_penalty_that_is_left_out_is_told(invoked, tmp_path: Path) -> None:
    settings = ["--set", "stages.trunk.smoothness=1e-4", "--set", "stages.trunk.depth=2"]
    done = invoked("build", "momrev_vit_digits", *settings, "--no-verify", "--emit", "model.py")
    assert done.returncode == 0, done.stderr
    assert "note: The penalty by `smoothness` of stage `trunk`" in done.stderr
    assert "`smoothness` of stage `trunk`" in (tmp_path / "model.py").read_text(encoding="utf-8")


def test_exact_arithmetic_is_written(invoked, tmp_path: Path) -> None:
    functions = "functions:\n      F: [layer_norm, mlp]\n      G: [tanh]\n"
    exact = SPEC[: SPEC.index("functions:")] + functions + SPEC[SPEC.index("head:") :]
    exact = exact.replace("coupling: additive", "coupling: momentum_pair\n    arithmetic: exact")
    (tmp_path / "own.yaml").write_text(exact, encoding="utf-8")
    done = invoked("build", "own.yaml", "--emit", "model.py")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "model.py").read_text(encoding="utf-8")
    assert "v1 = Remainder(9, 10).advance(v1, 0.9, 0.1 * self.F(x2), grid, kept)" in text
    ran = subprocess.run(
        [sys.executable, "model.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    *found, last = ran.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in found] == ["0"] * 4
    assert last == "right"


def test_a_file_of_the_users_is_not_replaced(invoked, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine = 1\n")
    done = invoked("build", "momrev_vit_digits", "--no-verify", "--emit", "model.py")
    assert done.returncode == 2
    assert "model.py is a file that archspec has not written" in done.stderr
    assert (tmp_path / "model.py").read_text() == "mine = 1\n"


@pytest.mark.parametrize("path", ["missing/model.py", "."])
def test_a_file_that_cannot_be_written(invoked, path: str) -> None:
    done = invoked("build", "momrev_vit_digits", "--no-verify", "--emit", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if path != ".":
        assert "cannot write missing/model.py: No such file" in done.stderr


def test_what_was_changed_since_is_not_replaced(invoked, tmp_path: Path) -> None:
    arguments = ("build", "rev_vit_digits", "--no-verify", "--emit", "model.py")
    assert invoked(*arguments).returncode == 0
    with (tmp_path / "model.py").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    done = invoked(*arguments)
    assert done.returncode == 2
    assert "changed since: not replaced" in done.stderr
    assert (tmp_path / "model.py").read_text(encoding="utf-8").endswith("# mine\n")


def test_a_partial_file_of_the_users_is_left_alone(invoked, tmp_path: Path) -> None:
    (tmp_path / "model.py.partial").write_text("mine\n")
    done = invoked("build", "rev_vit_digits", "--no-verify", "--emit", "model.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.py.partial").read_text() == "mine\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_is_verified_is_written(invoked, tmp_path: Path) -> None:
    settings = ("--set", "stages.trunk.constants.gamma=0.1", "--set", "stages.trunk.depth=14")
    failing = ("build", "momrev_vit_digits", *settings, "--emit", "model.py")
    done = invoked(*failing)
    assert done.returncode == 1
    assert "not written: model.py" in done.stderr
    assert not list(tmp_path.iterdir())
    assert invoked(*failing, "--no-verify").returncode == 0
    assert (tmp_path / "model.py").exists()


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


ODD = """
import os
import numpy
import torch
from torch import nn


class Random(nn.Module):
    def forward(self, x):
        return x * numpy.random.rand()


class Draws(nn.Module):
    def forward(self, x):
        return x * torch.rand(())


class Asks(nn.Module):
    def forward(self, x):
        return x * (1 if x.sum().item() > 0 else 2)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * 2


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        if os.path.exists("made"):
            raise ValueError("made before")
        open("made", "w").close()

    def forward(self, x):
        return x
"""


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("Random", 1, "the functions of stage `trunk` do not give the same twice for the same"),
        ("Draws", 1, "stage `trunk` cannot be verified: "),
        ("Counts", 1, "stage `trunk` cannot be verified: "),
        ("Asks", 0, "– MACs an input"),
        ("Once", 2, "making `odd.Once` failed: ValueError: made before"),
    ],
)
def test_odd_modules_end_in_one_message(archspec, tmp_path: Path, name, code, message) -> None:
    (tmp_path / "modules" / "odd.py").write_text(ODD, encoding="utf-8")
    (tmp_path / "odd.yaml").write_text(SPEC.replace("blocks.Gated", f"odd.{name}"))
    done = archspec("build", "odd.yaml", "--allow-modules", "odd")
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if name == "Once":
        (tmp_path / "made").unlink()
        done = archspec("build", "odd.yaml", "--allow-modules", "odd", "--emit", "model.py")
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    if name == "Asks":
        done = archspec("build", "odd.yaml", "--allow-modules", "odd", "--json")
        found = json.loads(done.stdout)
        assert found["macs"] is None
        assert found["kept_bytes"] is None
        assert found["verification"]["passed"]


@pytest.mark.usefixtures("own")
def test_training_refuses_what_cannot_be_replayed(archspec, tmp_path: Path) -> None:
    (tmp_path / "modules" / "odd.py").write_text(ODD, encoding="utf-8")
    functions = "stages.trunk.functions.G=[module: odd.Counts]"
    settings = ("--set", functions, "--set", "stages.trunk.depth=1", "--set", "train.epochs=1")
    done = archspec("train", "rev_vit_digits", *settings, "--allow-modules", "odd", "--quiet")
    assert done.returncode == 1
    assert "cannot be trained with its backward strategy" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("own")
def test_the_environment_may_allow_modules(archspec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHSPEC_ALLOW_MODULES", "other blocks")
    assert archspec("check", "own.yaml").returncode == 0
