"""Evaluation of a run: the numbers of its result again, and what they do not tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import RUNS, finished_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from archspec.data import VideoFolder
from archspec.diagnostics import SpecError
from archspec.loading import load
from runners.classification import calibration_error, classified, reliability
from runners.evaluation import PARTS, evaluate_run, subject_of
from runners.evaluation_plots import plot_confusion, plot_reliability
from runners.other_data import with_data
from runners.trained import open_trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs by the kind of their network."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in RUNS:
        finished_run(kind, folder / kind)
    return folder


@pytest.mark.parametrize("kind", list(RUNS))
def test_the_numbers_of_the_result_bit_for_bit(kind: str, runs: Path) -> None:
    result = json.loads((runs / kind / "result.json").read_text())
    trained = open_trained(runs / kind)
    assert trained.is_as_begun
    assert trained.epoch == result["best_epoch"]
    for part in ("test", "validation"):
        found = evaluate_run(trained, part=part, device="cpu")  # type: ignore[arg-type]
        assert found.metric.name == result["metric"]
        assert found.score.measured == result[f"{part}_{found.metric.name}"]
        assert found.unreadable == 0
        if part == "test":
            assert found.score.loss == result["test_loss"]
        assert (found.classes is None) == (kind in ("sparse_code", "density", "flow_matching"))
        json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize("settings", [("train.precision=bf16",), ("train.ema=0.9",)], ids=str)
def test_precision_and_average_are_those_of_training(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    result = finished_run("momentum", tmp_path / "run", *settings)
    found = evaluate_run(open_trained(tmp_path / "run"), device="cpu")
    assert found.score.measured == result.test_metric


def test_the_last_weights_and_other_batches(runs: Path) -> None:
    last = open_trained(runs / "momentum", "last")
    assert last.epoch == 2
    found = evaluate_run(last, batch=7, device="cpu")
    assert found.means.batch == 7
    assert found.score.samples == 355
    assert found.score.measured == pytest.approx(evaluate_run(last).score.measured)


def test_nothing_is_written_in_the_run(runs: Path) -> None:
    before = {p: p.read_bytes() for p in (runs / "momentum").rglob("*") if p.is_file()}
    evaluate_run(open_trained(runs / "momentum"), device="cpu")
    assert {p: p.read_bytes() for p in (runs / "momentum").rglob("*") if p.is_file()} == before


def test_a_classifier_is_told_as_its_outputs_say(runs: Path) -> None:
    found = evaluate_run(open_trained(runs / "convolution"), device="cpu")
    classes = found.classes
    assert classes is not None
    counts = np.array(classes.confusion)
    assert counts.sum() == found.score.samples
    assert counts.trace() / counts.sum() == pytest.approx(found.score.measured)
    np.testing.assert_allclose(counts.diagonal() / counts.sum(1), classes.per_class)
    assert sum(b.samples for b in classes.bins) == found.score.samples
    assert found.score.measured <= classes.top_k <= 1
    assert 0 <= classes.calibration_error <= 1


def test_plots_are_whole_and_the_same_twice(runs: Path, tmp_path: Path) -> None:
    found = evaluate_run(open_trained(runs / "momentum"), device="cpu")
    for plot in (plot_confusion, plot_reliability):
        plot(found, tmp_path / "a.svg")
        plot(found, tmp_path / "b.svg")
        text = (tmp_path / "a.svg").read_text()
        assert text == (tmp_path / "b.svg").read_text()
        assert "momrev_vit_digits, test split" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.svg"]


# Classifiers --------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 3.0, 0], [3.0, 0, 0]])
    labels = torch.tensor([0, 1, 0, 0])
    found = classified(logits, labels)
    sure = float(F.softmax(logits.double()[0], 0)[0])
    rest = (1 - sure) / 2
    assert found.k == 3
    assert found.top_k == 1
    assert found.confusion == ((2, 1, 0), (0, 1, 0), (0, 0, 0))
    assert found.per_class == (pytest.approx(2 / 3), 1.0, None)
    assert found.calibration_error == pytest.approx(abs(0.75 - sure))
    right, wrong = (1 - sure) ** 2 + 2 * rest**2, (1 - rest) ** 2 + sure**2 + rest**2
    assert found.brier == pytest.approx((3 * right + wrong) / 4)


@pytest.mark.parametrize("classes", [2, 5, 6, 50])
def test_top_k_for_any_number_of_classes(classes: int) -> None:
    logits = torch.randn(40, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % classes
    k = min(5, classes)
    wanted = (logits.topk(k).indices == labels[:, None]).any(1).double().mean()
    assert classified(logits, labels).top_k == pytest.approx(float(wanted))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50),
    st.integers(1, 20),
)
def test_bins_hold_every_sample_once(samples: list[tuple[float, bool]], count: int) -> None:
    confidence = np.array([c for c, _ in samples])
    is_right = np.array([r for _, r in samples])
    bins = reliability(confidence, is_right, count)
    assert len(bins) == count
    assert sum(b.samples for b in bins) == len(samples)
    for b in bins:
        assert (b.confidence is None) == (b.accuracy is None) == (b.samples == 0)
        if b.confidence is not None:
            assert b.low - 1e-12 <= b.confidence <= b.high + 1e-12
    apart = abs(confidence.mean() - is_right.mean())
    assert apart - 1e-9 <= calibration_error(bins) <= 1  # bins only add up what cancels over all


# Other data ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few digits of each class as PNG files, one of which is damaged."""
    bunch = load_digits()
    for index in range(220):
        part, label = "train" if index // 10 % 2 else "test", bunch.target[index]
        where = tmp_path / "images" / part / str(label)
        where.mkdir(parents=True, exist_ok=True)
        pixels = np.round(bunch.images[index] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(where / f"{index}.png")
    (tmp_path / "images/test/3/damaged.png").write_bytes(b"no image")
    return tmp_path / "images"


def test_a_folder_of_images(runs: Path, folder: Path) -> None:
    trained = open_trained(runs / "momentum")
    found = evaluate_run(trained, data=str(folder), device="cpu")
    assert found.unreadable == 1
    assert found.class_names == tuple(map(str, range(10)))
    statistics = {"mean": [0.3053], "std": [0.3761]}  # those of the digits that it was trained on
    assert found.subject.data == {"image_folder": {"path": str(folder), **statistics}}
    same = evaluate_run(trained, data=f"{{image_folder: '{folder}'}}", device="cpu")
    assert same.subject.data == found.subject.data
    assert same.score.loss == found.score.loss
    other = evaluate_run(
        trained, data=f"{{image_folder: {{path: '{folder}', mean: [0.9]}}}}", device="cpu"
    )
    assert other.score.loss != found.score.loss


def test_a_test_needs_nothing_to_train_on(runs: Path, folder: Path) -> None:
    trained = open_trained(runs / "momentum")
    whole = evaluate_run(trained, data=str(folder), device="cpu")
    shutil.rmtree(folder / "train")
    alone = evaluate_run(trained, data=str(folder), device="cpu")
    assert (alone.score.loss, alone.class_names) == (whole.score.loss, whole.class_names)
    with pytest.raises(SpecError, match=r"E601.* there is no folder .*train"):
        evaluate_run(trained, part="validation", data=str(folder), device="cpu")


def test_a_finished_run_without_its_spec(runs: Path, tmp_path: Path) -> None:
    """Training would only say that it is finished."""
    shutil.copytree(runs / "momentum", tmp_path / "run")
    (tmp_path / "run" / "spec.yaml").unlink()
    with pytest.raises(SpecError, match="the run is finished: remove"):
        open_trained(tmp_path / "run")


def test_other_classes_are_warned_of(
    runs: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(runs / "momentum", tmp_path / "run")
    trained = open_trained(tmp_path / "run")
    names = [*map(str, range(10))]
    for known, warned in ((names, False), ([*names[:9], "ten"], True)):
        (tmp_path / "run" / "classes.json").write_text(json.dumps(known), encoding="utf-8")
        caplog.clear()
        evaluate_run(trained, data=str(folder), device="cpu")
        assert ("class 9 was ten, and is 9. The first are" in caplog.text) == warned


def test_a_folder_is_read_as_that_of_the_run_was() -> None:
    content = {**load("rev_mvit_b_video").spec.model_dump(mode="json", exclude_unset=True)}
    content["data"] = {
        "video_folder": {"path": "mine", "every": 2, "augment": [], "mean": [0.5] * 3}
    }
    clips = with_data(
        load(content), "{video_folder: {path: theirs, mean: [0.1, 0.2, 0.3]}}"
    ).spec.data
    assert isinstance(clips, VideoFolder)
    assert (clips.path, clips.every, clips.mean) == ("theirs", 2, (0.1, 0.2, 0.3))
    assert "augment" not in clips.model_fields_set


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere/at/all", r"--data:1:1: error\[E601\] there is no folder nowhere/at/all"),
        (
            "{cifar10: data}",
            r"--data:1:1: error\[E602\] the images of cifar10 are 3×32×32(.*\n)*"
            r"  help: this network was trained on image 1×8×8 with 10 classes: choose data like",
        ),
        (
            "{image_folder: nowhere}",
            r"--data:1:16: error\[E601\] there is no folder nowhere(.*\n)*"
            r".* where yours are: --data '\{image_folder: FOLDER\}'",
        ),
        (
            "digit",
            r"--data:1:1: error\[E601\] there is no folder digit, and no data set of that name"
            r"(.*\n)*  help: did you mean `digits`\?",
        ),
        ("sparse_codes", r"--data:1:1: error\[E602\] the data set sparse_codes has no classes"),
        ("{digits: ", r"--data:1:10: error\[E101\]"),
    ],
)
def test_data_that_do_not_fit(text: str, message: str, runs: Path) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        evaluate_run(open_trained(runs / "momentum"), data=text, device="cpu")
    assert "--set" not in str(caught.value)


def test_the_data_told_are_what_a_split_depends_on(runs: Path) -> None:
    trained = open_trained(runs / "sparse_code")
    given = trained.loaded.tree.map["data"].map["sparse_codes"].map
    assert {"samples", "tests", "density"} <= set(given)
    said = {part: subject_of(trained, trained.loaded, part).data for part in PARTS}
    assert said["validation"] == trained.loaded.tree.map["data"].plain()
    depends_on = {name: given[name].plain() for name in ("tests", "density", "noise")}
    assert said["test"] == {"sparse_codes": depends_on}
    augmented = with_data(open_trained(runs / "momentum").loaded, "{digits: {repeat: 2}}")
    assert subject_of(trained, augmented, "validation").data == "digits"


# Folders that are no run --------------------------------------------------------------------------


def test_folders_that_are_no_run(runs: Path, tmp_path: Path) -> None:
    def refusal(path: Path, which: str = "best") -> str:
        with pytest.raises(SpecError) as caught:
            open_trained(path, which)  # type: ignore[arg-type]
        return str(caught.value)

    assert f"error[E604] there is no folder {tmp_path / 'none'}" in refusal(tmp_path / "none")
    assert "is no run: it has no run.json" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "is a file, where a run is expected" in refusal(tmp_path / "file")
    run = tmp_path / "run"
    shutil.copytree(runs / "momentum", run)
    (run / "last.safetensors").unlink()
    assert "is finished, and its last.safetensors is gone" in refusal(run, "last")
    (run / "result.json").unlink()
    assert "is not finished: it has no last.safetensors yet" in refusal(run, "last")
    assert "`--weights best`" in refusal(run, "last")
    shutil.copy(runs / "convolution/best.safetensors", run / "last.safetensors")
    foreign = refusal(run, "last")
    assert "last.safetensors has " in foreign
    assert "[E606]" in foreign
    (run / "last.safetensors").write_bytes(b"no weights")
    assert "[E606]" in refusal(run, "last")
    assert "cannot be read" in refusal(run, "last")
    (run / "best.safetensors").unlink()
    assert "has not finished an epoch" in refusal(run)
    (run / "run.json").write_text("{}")
    assert "run.json is not a run's description" in refusal(run)


def test_a_spec_that_was_edited_is_noticed(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "momentum", tmp_path / "run")
    spec = tmp_path / "run" / "spec.yaml"
    text = spec.read_text()
    assert "gamma: 0.9" in text
    spec.write_text(text.replace("gamma: 0.9", "gamma: 0.8"))
    assert not open_trained(tmp_path / "run").is_as_begun
