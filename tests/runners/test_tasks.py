"""Training for a task that is not classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import archspec
from archspec.diagnostics import SpecError
from archspec.loading import Loaded, load
from compiler.emission import emit
from compiler.resolve import resolve
from runners.data import in_order, open_data, read
from runners.tasks import SUBOPTIMALITY, SparseCoding, open_task
from runners.train import train

SMALL = (
    "input.features=[8]",
    "task.sparse_code.codes=12",
    "stages.trunk.depth=4",
    "stages.trunk.streams.x=zeros(12)",
    "data.sparse_codes.samples=300",
    "data.sparse_codes.tests=50",
    "train.epochs=3",
)


def small(spec: str, *settings: str) -> Loaded:
    more = {"momentum_lista": ["stages.trunk.streams.v=zeros(12)"]}
    more["rev_lista"] = ["stages.trunk.streams.z=zeros(12)"]
    return load(spec, [*SMALL, *more.get(spec, []), *settings])


@pytest.mark.parametrize("spec", ["lista", "momentum_lista", "rev_lista"])
def test_the_specs_train(spec: str, tmp_path: Path) -> None:
    loaded = small(spec)
    result = train(loaded, tmp_path, device="cpu", quiet=True)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    above = [record["validation_suboptimality"] for record in records]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert result.validation_metric == min(above) == above[result.best_epoch - 1]
    assert 0 <= result.test_metric < 0.5
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["metric"] == "suboptimality"
    assert written["test_suboptimality"] == result.test_metric
    assert train(loaded, tmp_path, device="cpu", quiet=True) == result


def test_training_starts_at_ista(tmp_path: Path) -> None:
    loaded = small("lista", "train.epochs=1", "train.learning_rate=1e-30")
    task = open_task(loaded)
    assert isinstance(task, SparseCoding)
    result = train(loaded, tmp_path, device="cpu", quiet=True)
    model = archspec.build(loaded)
    assert loaded.spec.data is not None
    split = open_data(loaded, loaded.spec.data, 0).test
    (batch,) = read(split, in_order(split, 50), torch.device("cpu"))
    task.start(model, lambda: batch)
    with torch.no_grad():
        outcome = task.in_evaluation(model, batch)
    assert outcome.measured / 50 == pytest.approx(result.test_metric, rel=1e-5)
    assert float(outcome.loss) == pytest.approx(result.test_loss, rel=1e-5)


def test_the_targets_are_the_least_objectives() -> None:
    loaded = small("lista")
    assert loaded.spec.data is not None
    data, task = open_data(loaded, loaded.spec.data, 0), open_task(loaded)
    assert (len(data.training), len(data.validation), len(data.test)) == (270, 30, 50)
    ((measurements, least),) = read(data.test, in_order(data.test, 50), torch.device("cpu"))
    outcome = task.in_evaluation(lambda y: y.new_zeros(len(y), 12), (measurements, least))
    assert outcome.measured > 0
    torch.testing.assert_close(outcome.loss, measurements.square().sum(1).mean() / 2)
    assert (least <= measurements.square().sum(1) / 2 + 1e-6).all()


def test_the_lower_is_the_better() -> None:
    assert SUBOPTIMALITY.better(0.1, than=0.2)
    assert not SUBOPTIMALITY.better(0.2, than=0.1)
    assert SUBOPTIMALITY.text(0.00123) == "1.23e-03"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=digits"], "E602.*learned from the data set sparse_codes, not from digits"),
        (["task={classify: 12}"], r"E602.*sparse_codes has no classes"),
        (["train.label_smoothing=0.1"], "E602.*there are no labels to smooth"),
        (["data.sparse_codes.validation=0.999"], "E602.*is none, or all"),
    ],
)
def test_what_does_not_go_together_is_refused(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    if settings == ["task={classify: 12}"]:
        settings.append("stages.trunk.functions.F.1.linear.out=12")
    with pytest.raises(SpecError, match=message):
        train(small("lista", *settings), tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_sparse_codes_need_features(tmp_path: Path) -> None:
    settings = ["input={tokens: [3, 8]}", "head=[pool: mean]"]
    with pytest.raises(SpecError, match="holds features, and the input is 3 tokens × 8"):
        train(small("lista", *settings), tmp_path / "run", device="cpu", quiet=True)


def test_digits_are_not_for_sparse_codes(tmp_path: Path) -> None:
    loaded = load("vit_digits", ["task={sparse_code: 10}", "head.2.linear.out=codes"])
    with pytest.raises(SpecError, match="not from digits"):
        train(loaded, tmp_path / "run", device="cpu", quiet=True)


# zeros of another width ---------------------------------------------------------------------------


def spec_of(start: str, input: dict[str, Any], function: list[Any]) -> dict[str, Any]:
    return {
        "archspec": 1,
        "name": "wide",
        "summary": "Streams of two widths",
        "input": input,
        "stages": {
            "trunk": {
                "depth": 2,
                "streams": {"x": start, "y": "input"},
                "functions": {"F": ["concat", *function]},
                "update": ["x = (1 + tanh(x)/2)*F(x, y)"],
                "output": "x",
                "backward": "store",
            }
        },
        "head": ["flatten", {"linear": "classes"}],
        "task": {"classify": 3},
    }


@pytest.mark.parametrize(
    ("input", "function"),
    [
        ({"features": [4]}, [{"linear": 7}]),
        ({"tokens": [5, 4]}, [{"linear": 7}]),
        ({"image": [4, 6, 5]}, [{"conv": 7}, {"soft_threshold": 0.2}]),
    ],
)
@pytest.mark.parametrize("start", ["zeros(7)", "2*zeros(7)", "concat(zeros(3), input)"])
def test_zeros_of_another_width(input: dict[str, Any], function: list[Any], start: str) -> None:
    spec = spec_of(start, input, function)
    model = archspec.build(spec)
    (shape,) = input.values()
    batch = torch.randn(2, *shape)
    wide, narrow = model.stages[0].split(batch)
    channels = 1
    assert wide.shape[channels if "image" in input else -1] == 7
    assert wide.shape[0] == 2
    assert torch.equal(narrow, batch)
    if "concat" not in start:
        assert not wide.any()
    assert model(batch).shape == (2, 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("zeros(0)", "expected a whole number of channels from 1"),
        ("zeros(1/2)", "zeros of another width are written `zeros\\(n\\)`"),
        ("zeros(2.5)", "expected a whole number of channels from 1"),
        ("zeros(3, 4)", "zeros of another width are written `zeros\\(n\\)`"),
        ("zeros(input)", "zeros of another width are written `zeros\\(n\\)`"),
        ("zeros(7) + input", "`zeros\\(7\\)` is 7 features, `input` is 4 features"),
    ],
)
def test_mistakes_in_zeros(start: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(load(spec_of(start, {"features": [4]}, [{"linear": 7}])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages.trunk.output=x + zeros(7)"], "E402.*belongs where streams start"),
        (["stages.trunk.update.0=x = F(x, y) + zeros(7)"], "E205.*not in an update"),
        (["head.1.linear=codes"], "`codes` has no value here"),
    ],
)
def test_zeros_and_sizes_have_their_places(settings: list[str], message: str) -> None:
    spec = spec_of("zeros(7)", {"features": [4]}, [{"linear": 7}])
    with pytest.raises(SpecError, match=message):
        resolve(load(spec, settings))


def test_zeros_are_emitted() -> None:
    loaded = load(spec_of("zeros(7)", {"image": [4, 6, 5]}, [{"conv": 7}, "soft_threshold"]))
    text = emit(resolve(loaded), loaded.spec)
    assert "x = input.new_zeros(*input.shape[:-3], 7, *input.shape[-2:])" in text
