"""archspec evaluate: a run measured again, from the command to its files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from finished_runs import finished_run
from safetensors.torch import load_file, save_file

from archspec.cli import main
from archspec.loading import load
from runners.run_folder import TrainResult
from runners.train import train

MODULES = """
import torch
from torch import nn

class Gain(nn.Module):
    def __init__(self, by: float = 2.0):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, value):
        return torch.tanh(self.by * value)

class Fickle(Gain):
    def forward(self, value):
        return torch.tanh(value) if value.sum() > 0 else torch.sin(value)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run in the folder of commands."""
    finished_run("momentum", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def own_modules(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TrainResult]:
    """Trains a network with a module of the user's own, in the folder of commands."""

    def trained(name: str) -> TrainResult:
        Path("mine.py").write_text(MODULES)
        monkeypatch.syspath_prepend(here)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        Path("spec.yaml").write_text(
            "archspec: 1\nname: own\nsummary: With a module of its own\nextends: rev_vit_digits\n"
            "stages: {trunk: {depth: 1, functions: {G: [layer_norm, module: mine."
            f"{name}]}}}}}}\ntrain: {{epochs: 1, warmup: 0}}\n"
        )
        loaded = load("spec.yaml", allow_modules=["mine"])
        return train(loaded, Path("run"), device="cpu", quiet=True)

    return trained


def invoked(*command: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(main, command)


def test_the_result_again(archspec, run) -> None:
    result = json.loads((run / "result.json").read_text())
    done = archspec("evaluate", "run", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] == result["test_accuracy"]
    assert found["loss"] == result["test_loss"]
    assert found["epoch"] == result["best_epoch"]
    assert found["samples"] == 355
    assert found["seconds"] > found["data_seconds"] >= 0
    assert set(found["classification"]) == {
        *("names", "k", "top_k", "per_class", "confusion", "calibration_error", "brier", "bins")
    }
    assert sorted(p.name for p in run.parent.iterdir()) == ["run"]  # nothing else is written
    assert not (run / "evaluation.json").exists()


def test_a_table_and_files(run, here) -> None:
    done = invoked("evaluate", "run", "--split", "validation", "--output", "some/where")
    assert done.exit_code == 0, done.stderr
    assert "momrev_vit_digits: best.safetensors of epoch 2, 145 validation samples" in done.stdout
    for word in ("accuracy", "top 5", "loss", "calibration error", "Brier", "samples a second"):
        assert word in done.stdout
    names = sorted(p.name for p in (here / "some/where").iterdir())
    assert names == ["confusion.svg", "evaluation.json", "reliability.svg"]
    found = json.loads((here / "some/where/evaluation.json").read_text())
    assert found["accuracy"] == json.loads((run / "result.json").read_text())["validation_accuracy"]


def test_a_sparse_code_has_no_classes(here) -> None:
    result = finished_run("sparse_code", here / "run")
    done = invoked("evaluate", "run", "--json", "--output", "out")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["suboptimality"] == result.test_metric
    assert "classification" not in found
    assert [p.name for p in (here / "out").iterdir()] == ["evaluation.json"]


def test_a_module_of_the_users_own_is_allowed_again(own_modules) -> None:
    result = own_modules("Gain")
    done = invoked("evaluate", "run")
    assert done.exit_code == 2
    assert "error[E404]" in done.stderr
    done = invoked("evaluate", "run", "--allow-modules", "mine", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == result.test_metric


def test_mistakes_end_with_2_and_one_message(run, here) -> None:
    cases = {
        ("evaluate", "nowhere"): "error[E604] there is no folder nowhere, where a run is expected",
        ("evaluate", "."): "error[E604] . is no run: it has no run.json",
        ("evaluate", "run", "--data", "{cifar10: data}"): "error[E602] the images of cifar10",
        ("evaluate", "run", "--output", "run/spec.yaml/x"): "cannot write in run/spec.yaml/x",
        ("evaluate", "run", "--split", "train"): "'train' is not one of 'test', 'validation'",
    }
    for command, message in cases.items():
        done = invoked(*command)
        assert (done.exit_code, done.stdout) == (2, ""), command
        assert message in done.stderr


def test_a_spec_that_was_edited_is_warned_of(run, here) -> None:
    spec = run / "spec.yaml"
    spec.write_text(spec.read_text().replace("gamma: 0.9", "gamma: 0.8"))
    done = invoked("evaluate", "run", "--json")
    assert done.exit_code == 0
    assert "spec.yaml is not the spec that the run was begun with" in done.stderr


def test_a_stream_that_leaves_its_grid_ends_it(here) -> None:
    finished_run("exact", here / "run")
    weights = here / "run/best.safetensors"
    large = {name: 1e6 * value for name, value in load_file(weights).items()}
    save_file(large, weights)
    done = invoked("evaluate", "run")
    assert done.exit_code == 1
    assert re.search(r"stage `trunk`, .* stream `\w+` reached ", done.stderr)
