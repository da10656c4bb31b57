"""archspec evaluate: a run measured again, from the command to its files."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_runs import finished_run
from safetensors.torch import load_file, save_file

from archspec.loading import load
from runners.likeness import Likeness
from runners.run_folder import TrainResult
from runners.train import train

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    finished_run("momentum", folder)
    return folder


@pytest.fixture
def run(finished: Path, here: Path) -> Path:
    """A finished run in the folder of commands."""
    shutil.copytree(finished, here / "run")
    return here / "run"


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


def test_the_result_again(invoked, run) -> None:
    result = json.loads((run / "result.json").read_text())
    done = invoked("evaluate", "run", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] == result["test_accuracy"]
    assert found["loss"] == result["test_loss"]
    assert found["epoch"] == result["best_epoch"]
    assert found["samples"] == 355
    assert found["seconds"] > found["data_seconds"] >= 0
    assert found["data"] == "digits"  # nothing of the augmentation that it was trained with
    assert found["spec_hash"] == json.loads((run / "run.json").read_text())["spec_hash"]
    assert sorted(p.name for p in run.parent.iterdir()) == ["run"]  # nothing else is written
    assert not (run / "evaluation.json").exists()


def test_a_run_by_its_name(invoked, run, here) -> None:
    (here / "runs").mkdir()
    for number, name in enumerate(("old", "new", "newer")):
        shutil.copytree(run, here / "runs" / name)
        os.utime(here / "runs" / name, (number, number))
    found = json.loads(invoked("evaluate", "new", "--json").stdout)
    assert found["run"] == str(Path("runs/new"))
    assert found["samples"] == 355
    within = invoked("evaluate", "runs").stderr
    listed = ", ".join(str(Path("runs", name)) for name in ("newer", "new", "old"))
    assert (
        f"runs is no run: it has no run.json\n  help: runs in it, the latest first: {listed}\n"
        in (within)
    )
    assert f"did you mean {Path('runs/old')}?" in invoked("evaluate", "olds").stderr
    (here / "old").mkdir()
    assert f"help: there is a run in {Path('runs/old')}" in invoked("evaluate", "old").stderr


def test_a_table_and_files(invoked, run, here) -> None:
    done = invoked("evaluate", "run", "--split", "validation", "--output", "some/where")
    assert done.returncode == 0, done.stderr
    assert "momrev_vit_digits: best.safetensors of epoch 2, 145 validation samples" in done.stdout
    for word in ("accuracy", "top 5", "loss", "calibration error", "Brier", "samples a second"):
        assert word in done.stdout
    names = sorted(p.name for p in (here / "some/where").iterdir())
    assert names == ["confusion.svg", "evaluation.json", "reliability.svg"]
    found = json.loads((here / "some/where/evaluation.json").read_text())
    assert found["accuracy"] == json.loads((run / "result.json").read_text())["validation_accuracy"]


def test_only_an_evaluation_of_the_same_is_replaced(invoked, run, here) -> None:
    evaluate = ("evaluate", "run", "--output", "out")
    assert invoked(*evaluate).returncode == 0
    assert invoked(*evaluate, "--batch", "100").returncode == 0
    before = (here / "out/evaluation.json").read_text()
    assert json.loads(before)["batch"] == 100
    shutil.copytree(run, here / "twin")
    others = {
        ("evaluate", "twin", "--output", "out"): "run is run there, twin here",
        (
            *evaluate,
            "--weights",
            "last",
        ): "weights is best.safetensors there, last.safetensors here",
        (*evaluate, "--split", "validation"): "split is test there, validation here",
        (*evaluate, "--data", "fake"): "data is digits there, fake here",
    }
    for command, why in others.items():
        done = invoked(*command)
        assert (done.returncode, done.stdout) == (2, "")
        name = Path("out/evaluation.json")
        assert f"Error: {name} is not replaced: {why}; choose another folder" in done.stderr
    assert (here / "out/evaluation.json").read_text() == before
    (here / "mine").mkdir()
    (here / "mine/confusion.svg").write_text("mine")
    done = invoked("evaluate", "run", "--output", "mine")
    assert (done.returncode, (here / "mine/confusion.svg").read_text()) == (2, "mine")


def test_every_key_is_in_the_documentation(invoked, run, here) -> None:
    finished_run("sparse_code", here / "code")
    found = json.loads(invoked("evaluate", "run", "--json").stdout)
    code = json.loads(invoked("evaluate", "code", "--json").stdout)
    finished_run("density", here / "flow")
    flow = json.loads(invoked("evaluate", "flow", "--inversion", "--json").stdout)
    classes = found["classification"]
    text = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    tables = re.split(r"^## evaluation\.json$", text, flags=re.MULTILINE)[1]
    keys = {
        key
        for cell in re.findall(r"^\| (`.+?) \|", tables, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", cell)
    }
    finished_run("flow_matching", here / "velocities")
    asked = ("--fidelity", "--features", "run", "--steps", "1", "--samples", "20")
    velocities = json.loads(invoked("evaluate", "velocities", *asked, "--json").stdout)
    fidelity = velocities["generation"]["fidelity"]
    images = {*velocities["generation"], *fidelity, *fidelity["solving"]}
    back = {*flow, *flow["inversion"], *flow["inversion"]["rows"][0], *vars(Likeness(0, 0, 0))}
    assert keys == {*found, *code, *velocities, *images, *back, *classes, *classes["bins"][0]}


def test_a_sparse_code_has_no_classes(invoked, here) -> None:
    result = finished_run("sparse_code", here / "run")
    done = invoked("evaluate", "run", "--json", "--output", "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["suboptimality"] == result.test_metric
    assert "classification" not in found
    assert [p.name for p in (here / "out").iterdir()] == ["evaluation.json"]


def test_a_module_of_the_users_own_is_allowed_again(invoked, own_modules) -> None:
    result = own_modules("Gain")
    done = invoked("evaluate", "run")
    assert done.returncode == 2
    assert "error[E404]" in done.stderr
    done = invoked("evaluate", "run", "--allow-modules", "mine", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == result.test_metric


def test_mistakes_end_with_2_and_one_message(invoked, run, here) -> None:
    cases = {
        ("evaluate", "nowhere"): "error[E604] there is no folder nowhere, where a run is expected",
        ("evaluate", "."): "error[E604] . is no run: it has no run.json",
        ("evaluate", "run", "--data", "{cifar10: data}"): "error[E602] the images of cifar10",
        ("evaluate", "run", "--output", "run/spec.yaml/x"): "cannot write in run/spec.yaml/x",
        ("evaluate", "run", "--split", "train"): "'train' is not one of 'test', 'validation'",
    }
    for command, message in cases.items():
        done = invoked(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert message in done.stderr


def test_a_spec_that_was_edited_is_warned_of(invoked, run, here) -> None:
    spec = run / "spec.yaml"
    spec.write_text(spec.read_text().replace("gamma: 0.9", "gamma: 0.8"))
    done = invoked("evaluate", "run", "--json")
    assert done.returncode == 0
    assert "spec.yaml is not the spec that the run was begun with" in done.stderr


def test_a_stream_that_leaves_its_grid_ends_it(invoked, here) -> None:
    finished_run("exact", here / "run")
    weights = here / "run/best.safetensors"
    large = {name: 1e6 * value for name, value in load_file(weights).items()}
    save_file(large, weights)
    done = invoked("evaluate", "run")
    assert done.returncode == 1
    assert re.search(r"stage `trunk`, .* stream `\w+` reached ", done.stderr)


def test_images_there_and_back(invoked, run: Path) -> None:
    """In float32 nearly, in exact arithmetic all of them; a smaller gamma drifts further."""
    arguments = ("--inversion", "--layers", "1,2", "--constant", "gamma=0.3,0.9")
    done = invoked("evaluate", "run", *arguments, "--json", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "64 images through trunk and back" in done.stderr
    rows = json.loads(done.stdout)["inversion"]["rows"]
    assert len(rows) == 2 * 2 * 3
    by = {(row["constant"], row["layers"], row["arithmetic"]): row for row in rows}
    for row in rows:
        if row["arithmetic"] == "exact":
            assert (row["stream_error"], row["psnr"], row["largest_error"]) == (0.0, None, 0.0)
            assert row["exact_pixels"] == 1
    small, large = (by[f"gamma={gamma}", 2, "float32"] for gamma in (0.3, 0.9))
    assert small["stream_error"] > large["stream_error"] > 0
    assert large["psnr"] > 100
    assert by["gamma=0.9", 2, "bf16"]["psnr"] < large["psnr"]
    assert Path("out", "inversion.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("out", "evaluation.json").read_text())["inversion"]["rows"] == rows


def test_what_comes_back_is_held_against_the_images(invoked, run: Path) -> None:
    """By the features of a classifier, which may be the network itself."""
    asked = ("--inversion", "--layers", "2", "--fidelity", "--features", "run", "--images", "100")
    done = invoked("evaluate", "run", *asked, "--json")
    assert done.returncode == 0, done.stderr
    assert "100 images through trunk and back" in done.stderr
    assert "FD[run]" in done.stderr
    found = json.loads(done.stdout)["inversion"]
    assert (found["features"], found["images"]) == ("run", 100)
    by = {row["arithmetic"]: row for row in found["rows"]}
    exact, bf16 = (by[name]["likeness"] for name in ("exact", "bf16"))
    assert 0 <= exact["frechet_distance"] < 1e-5 < bf16["frechet_distance"]
    assert (exact["precision"], exact["recall"]) == (1, 1)


def test_any_stage_is_inverted(invoked, here: Path) -> None:
    """Behind a transition that has no inverse too."""
    finished_run("convolution", here / "run")
    done = invoked("evaluate", "run", "--inversion", "--stage", "coarse", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["inversion"]
    assert found["stage"] == "coarse"
    by = {row["arithmetic"]: row for row in found["rows"]}
    assert 0 < by["float32"]["largest_error"] < 1e-4
    assert by["exact"]["largest_error"] == 0


@pytest.mark.parametrize("kind", ["density", "flow_matching"])
def test_networks_that_make_images_are_inverted(kind: str, invoked, here: Path) -> None:
    finished_run(kind, here / "run", "train.epochs=1")
    found = json.loads(invoked("evaluate", "run", "--inversion", "--json").stdout)["inversion"]
    for row in found["rows"]:
        assert (
            row["largest_error"] < {"float32": 1e-4, "bf16": 0.5, "exact": 1e-12}[row["arithmetic"]]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "2"), "go with --inversion"),
        (("--inversion", "--layers", "two"), "write numbers as 12,24,48"),
        (("--inversion", "--constant", "gamma"), "write it as gamma=0.5,0.9"),
        (("--inversion", "--constant", "gamma=0"), "of numbers that are not 0"),
        (("--inversion", "--constant", "beta=1"), "`beta` is no constant of stage `trunk`"),
        (("--inversion", "--layers", "99"), "stage `trunk` has 2 layers"),
        (("--inversion", "--stage", "trunc"), "has no stage `trunc`"),
        (("--stage", "trunk"), "go with --inversion"),
        (("--images", "2"), "go with --inversion"),
    ],
)
def test_mistakes_of_inversion(
    invoked, run: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = invoked("evaluate", "run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
