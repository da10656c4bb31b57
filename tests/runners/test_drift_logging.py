"""Runs log how far streams drift, and are the same as without."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from archspec.loading import Loaded
from runners import train as module
from runners.data import open_data
from runners.devices import open_fabric
from runners.drift_log import drift_scalars
from runners.tasks import Classification
from runners.train import build_model, recipe_and_data, set_up, train

Tiny = Callable[..., Loaded]
NAMES = ["drift/trunk/measured", "drift/trunk/predicted"]


def lines(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_epoch_is_logged(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("stages.trunk.depth=4", "train.epochs=2"), tmp_path, device="cpu", quiet=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in NAMES:
        values = [line[name] for line in lines(tmp_path)]
        assert all(value is not None and 1e-9 < value < 1e-5 for value in values)
        assert [event.step for event in board.Scalars(name)] == [1, 2]


def test_runs_are_the_same_as_without(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("train.epochs=2")
    train(loaded, tmp_path / "with", device="cpu", quiet=True)
    monkeypatch.setattr(module, "drift_scalars", lambda *_: {})
    train(loaded, tmp_path / "without", device="cpu", quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    clock = ("seconds", "data_seconds", "samples_per_second", "memory_bytes", *NAMES)
    one, other = (
        [{k: v for k, v in line.items() if k not in clock} for line in lines(tmp_path / folder)]
        for folder in ("with", "without")
    )
    assert one == other


REVNET = {
    "depth": 2,
    "coupling": "additive",
    "functions": {name: ["batch_norm", {"conv": {}}] for name in "FG"},
}
BDIA = {"depth": 2, "coupling": "bdia", "functions": {"F": ["layer_norm", {"mlp": 1}]}}


@pytest.mark.parametrize(
    ("stage", "stem", "head"),
    [
        (REVNET, [{"conv": {"out": 4}}, "batch_norm"], [{"pool": "mean"}, {"linear": "classes"}]),
        (
            BDIA,
            [{"patch_embed": {"patch": 4, "width": 8}}],
            [{"pool": "mean"}, {"linear": "classes"}],
        ),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_disturbed(
    tiny: Tiny, stage: object, stem: object, head: object, precision: str
) -> None:
    loaded = tiny(f"train.precision={precision}", stages={"trunk": stage}, stem=stem, head=head)
    recipe, entry = recipe_and_data(loaded)
    parts = set_up(open_fabric(loaded, recipe, "cpu"), build_model(loaded), recipe)
    split = open_data(loaded, entry, recipe.seed).validation
    model = parts.model
    model.train()
    model.stages[0].layers[1].eval()
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [inner.training for inner in model.modules()]
    versions = [p._version for p in model.parameters()]
    generator = torch.get_rng_state()
    task = Classification()
    first, second = drift_scalars(parts, task, split), drift_scalars(parts, task, split)
    assert first == second
    assert list(first) == NAMES
    assert all(map(math.isfinite, first.values()))

    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [inner.training for inner in model.modules()]
    assert versions == [p._version for p in model.parameters()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_streams_that_are_kept_on_the_way_do_not_drift(tiny: Tiny, tmp_path: Path) -> None:
    stage = {
        "depth": 60,
        "coupling": "momentum",
        "functions": {"F": ["layer_norm", {"mlp": 1}]},
        "constants": {"gamma": 0.1},
        "store_every": 2,
    }
    train(tiny("train.epochs=1", stages={"trunk": stage}), tmp_path, device="cpu", quiet=True)
    (line,) = lines(tmp_path)
    assert all((line[name] or math.inf) < 1e-3 for name in NAMES)


def test_what_cannot_be_measured_is_null_and_the_run_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("runners.drift_log.measured_errors", fails)
    train(tiny("train.epochs=1"), tmp_path, device="cpu", quiet=True)
    (line,) = lines(tmp_path)
    assert [line[name] for name in NAMES] == [None, None]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("backward", ["store", "checkpoint"])
def test_stages_that_do_not_reconstruct_have_no_drift(
    tiny: Tiny, tmp_path: Path, backward: str
) -> None:
    loaded = tiny("train.epochs=1", f"stages.trunk.backward={backward}")
    train(loaded, tmp_path, device="cpu", quiet=True)
    assert not set(NAMES) & set(lines(tmp_path)[0])


def test_other_modules_have_no_drift(tiny: Tiny) -> None:
    loaded = tiny()
    recipe, entry = recipe_and_data(loaded)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    parts = set_up(open_fabric(loaded, recipe, "cpu"), model, recipe)
    assert drift_scalars(parts, Classification(), open_data(loaded, entry, 0).validation) == {}
