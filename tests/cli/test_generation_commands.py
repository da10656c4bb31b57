"""archspec sample, invert and evaluate --fidelity: what is done with networks that make images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from finished_runs import finished_run
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A density and a classifier, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    finished_run("density", folder / "flow", "train.epochs=6")
    finished_run("reversible", folder / "classifier", "train.epochs=4")
    return folder


@pytest.fixture
def run(runs: Path, here: Path) -> Path:
    """Both in the folder of commands."""
    shutil.copytree(runs, here / "runs")
    return here / "runs" / "flow"


def test_samples_are_a_grid_and_a_folder(archspec, invoked, run: Path) -> None:
    """In a process of its own; the same seed gives the same images, and nothing is replaced."""
    done = archspec("sample", "flow", "--count", "10", "--seed", "3")
    assert done.returncode == 0, done.stderr
    folder = run / "samples"
    found = sorted(path.name for path in (folder / "images").iterdir())
    assert found == [f"{number:05}.png" for number in range(10)]
    with Image.open(folder / "images" / "00000.png") as first:
        assert (first.size, first.mode) == ((8, 8), "L")
    with Image.open(folder / "grid.png") as grid:
        assert grid.size[0] >= 512
    again = invoked("sample", "flow", "--count", "10", "--seed", "3", "--output", "again")
    assert again.returncode == 0
    same = (Path("again") / "images" / "00007.png").read_bytes()
    assert same == (folder / "images" / "00007.png").read_bytes()
    assert [p.name for p in Path("again").iterdir() if p.name.startswith(".")] == []


def test_nothing_is_replaced_unasked(invoked, run: Path) -> None:
    assert invoked("sample", "flow", "--count", "2").returncode == 0
    done = invoked("sample", "flow")
    assert done.returncode == 2
    assert "not replaced; --force does" in done.stderr
    assert len(list((run / "samples" / "images").iterdir())) == 2
    assert invoked("sample", "flow", "--count", "3", "--force").returncode == 0
    assert len(list((run / "samples" / "images").iterdir())) == 3
    for parent in (".", "..", "runs", str(run)):
        Path(parent, "grid.png").touch()
        done = invoked("sample", "flow", "--output", parent, "--force")
        assert done.returncode == 2
        assert "is in it; choose another" in done.stderr
    assert invoked("sample", "flow", "--count", "2", "--force").returncode == 0
    (run / "samples" / "mine.txt").write_text("mine")
    done = invoked("sample", "flow", "--force")
    assert done.returncode == 2
    assert "mine.txt in it is not ours" in done.stderr
    assert (run / "samples" / "mine.txt").read_text() == "mine"
    mine = Path("mine")
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    done = invoked("sample", "flow", "--output", "mine", "--force")
    assert done.returncode == 2
    assert (mine / "thesis.tex").read_text() == "mine"


def test_images_there_and_back(invoked, run: Path) -> None:
    assert invoked("sample", "flow", "--count", "5", "--output", "given").returncode == 0
    done = invoked("invert", "flow", "given/images", "given/images/00000.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits per dimension") == 6
    folder = run / "inverted"
    for number in range(5):
        name = f"{number:05}.png"
        with (
            Image.open(Path("given") / "images" / name) as given,
            Image.open(folder / "images" / name) as back,
        ):
            assert torch.equal(pil_to_tensor(given), pil_to_tensor(back))
    latents = load_file(folder / "latents.safetensors")
    assert {name: tuple(value.shape) for name, value in latents.items()} == {"latent_0": (6, 64)}


def test_samples_beside_data(invoked, run: Path) -> None:
    """By the features of a classifier, beside the samples of a Gaussian."""
    features = ("--fidelity", "--features", "classifier")
    done = invoked("evaluate", "flow", *features, "--samples", "200", "--json", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "FD[classifier]" in done.stderr
    found = json.loads(done.stdout)
    assert json.loads(Path("out", "evaluation.json").read_text()) == found
    density = found["generation"]
    assert found["bits_per_dimension"] < density["gaussian_bits"]
    ours, gaussian = density["fidelity"], density["gaussian_fidelity"]
    assert ours["samples"] == gaussian["samples"] == 200
    assert ours["features"] == "classifier"
    assert ours["frechet_distance"] < gaussian["frechet_distance"]
    assert 1 <= ours["inception_score"] <= 10
    assert 0 <= ours["precision"] <= 1
    assert 0 <= ours["recall"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "classifier"), "is of the task classify"),
        (("invert", "flow", "."), "there are no images in"),
        (("evaluate", "classifier", "--fidelity"), "is of the task classify"),
        (("evaluate", "flow", "--features", "classifier"), "go with --fidelity"),
        (
            ("evaluate", "flow", "--fidelity", "--features", "flow"),
            "is no classifier whose head ends",
        ),
        (("evaluate", "flow", "--fidelity", "--features", "gone"), "there is no folder gone"),
        (
            ("evaluate", "flow", "--inversion", "--fidelity", "--images", "1"),
            "--images 16, or more",
        ),
        (("sample", "flow", "--count", "0"), "0 is not in the range"),
        (("sample", "flow", "--seed", str(2**64)), "is not in the range"),
        (
            ("evaluate", "classifier", "--inversion", "--fidelity", "--steps", "3"),
            "makes no images",
        ),
        (("sample", "flow", "--temperature", "-1"), "-1"),
        (("sample", "flow", "--temperature", "nan"), "nan is no number to compute with"),
        (("sample", "flow", "--device", "gpu"), "gpu"),
        (("sample", "flow", "--steps", "4"), "--steps goes with `task: flow_matching`"),
        (("sample", "flow", "--label", "1"), "--label goes with `classes: 10`"),
        (("evaluate", "flow", "--fidelity", "--solver", "euler"), "--solver goes with `task: flow"),
        (("invert", "flow", "nowhere.png"), "nowhere.png"),
        (("invert", "flow", "folders"), "there are no images in folders"),
        (("sample",), "Missing argument"),
    ],
)
def test_mistakes(invoked, run: Path, arguments: tuple[str, ...], message: str) -> None:
    Path("folders", "a.png").mkdir(parents=True)
    done = invoked(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "samples").exists()


def test_features_are_of_images_of_the_same_size(invoked, run: Path) -> None:
    finished_run("reversible", Path("large"), "input.image=[1, 16, 16]", LARGE)
    done = invoked("evaluate", "flow", "--fidelity", "--features", "large")
    assert done.returncode == 2
    assert "is of images of 1×16×16, and these are 1×8×8" in done.stderr


LARGE = "data={fake: {samples: 128, tests: 20}}"


def test_a_file_that_is_no_image_ends_it(invoked, run: Path) -> None:
    Path("text.png").write_text("no image")
    done = invoked("invert", "flow", "text.png")
    assert done.returncode == 2
    assert "cannot read the image text.png" in done.stderr
    assert not (run / "inverted").exists()


def test_without_weights_of_inception_the_offline_way_is_told(
    invoked, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torch_fidelity import feature_extractor_inceptionv3 as module

    def offline(*arguments: object, **keys: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(module, "load_state_dict_from_url", offline)
    done = invoked("evaluate", "flow", "--fidelity", "--output", "out")
    assert done.returncode == 2
    assert "error[E601]" in done.stderr
    assert "--features runs/vit_digits" in done.stderr
    assert not Path("out", "evaluation.json").exists()


# Flow matching ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow_matching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is asked for classes, and a classifier."""
    folder = tmp_path_factory.mktemp("flow_matching")
    finished_run("flow_matching", folder / "digits", "train.epochs=6")
    finished_run("reversible", folder / "classifier", "train.epochs=4")
    return folder


@pytest.fixture
def velocities(flow_matching: Path, here: Path) -> Path:
    shutil.copytree(flow_matching, here / "runs")
    return here / "runs" / "digits"


def test_images_of_a_class_in_some_steps(invoked, velocities: Path) -> None:
    few = ("--count", "6", "--steps", "4")
    for name, more in {
        "plain": (),
        "same": ("--solver", "midpoint", "--guidance", "1"),
        "threes": ("--label", "3"),
        "pushed": ("--guidance", "4"),
        "euler": ("--solver", "euler"),
    }.items():
        done = invoked("sample", "digits", *few, *more, "--output", name)
        assert done.returncode == 0, done.stderr
    found = {
        name: [path.read_bytes() for path in sorted(Path(name, "images").iterdir())]
        for name in ("plain", "same", "threes", "pushed", "euler")
    }
    assert found["plain"] == found["same"]
    assert found["plain"][3] == found["threes"][3]  # its turn
    assert found["plain"] != found["threes"]
    assert found["plain"] != found["pushed"]
    assert found["plain"] != found["euler"]


def test_samples_of_velocities_beside_data(invoked, velocities: Path) -> None:
    asked = ("--fidelity", "--features", "classifier", "--steps", "4", "--samples", "100")
    done = invoked("evaluate", "digits", *asked, "--json")
    assert done.returncode == 0, done.stderr
    assert "4 steps of midpoint" in done.stderr
    found = json.loads(done.stdout)["generation"]
    assert found["gaussian_bits"] is None
    assert found["fidelity"]["solving"] == {"steps": 4, "solver": "midpoint", "guidance": 1.0}
    assert found["gaussian_fidelity"]["solving"] is None
    assert found["fidelity"]["frechet_distance"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("sample", "digits", "--label", "10"),
            "there is no class 10: they are numbered from 0 to",
        ),
        (("invert", "digits", "runs"), "is of the task flow_matching"),
        (("sample", "digits", "--steps", "0"), "0 is not in the range"),
        (("sample", "digits", "--solver", "rk9"), "rk9"),
        (("evaluate", "digits", "--steps", "4"), "go with --fidelity"),
    ],
)
def test_mistakes_with_velocities(
    invoked, velocities: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("runs", "image.png").write_bytes(b"")
    done = invoked(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (velocities / "samples").exists()


def test_guidance_needs_training_without_labels(invoked, velocities: Path) -> None:
    spec = velocities / "spec.yaml"
    text = spec.read_text(encoding="utf-8")
    assert "flow_matching: 10" in text
    text = text.replace("flow_matching: 10", "flow_matching: {classes: 10, unlabelled: 0}")
    spec.write_text(text, encoding="utf-8")
    done = invoked("sample", "digits", "--guidance", "2")
    assert done.returncode == 2
    assert "trained without labels too" in done.stderr
