"""What is profiled is what training does."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from torch import nn

import runners.loop
import runners.train
from archspec.loading import load
from archspec.shapes import Tokens
from archspec.training import Train
from compiler.network import Network
from compiler.resolve import resolve
from runners.parts import Parts
from runners.profile.ledger import Ledger
from runners.profile.measurement import memory_use
from runners.profile.plots import plots
from runners.profile.prediction import Forecast
from runners.profile.report import Asked, Report, Row, profile
from runners.profile.schedules import (
    REVERSIBLE,
    SCHEDULES,
    STORE,
    Kept,
    Planned,
    Schedule,
    phases,
)
from runners.profile.step import TrainingStep

CPU = torch.device("cpu")
PLAIN = Train(epochs=1, batch=8, learning_rate=1e-3)
MIXED = {
    "archspec": 1,
    "name": "mixed",
    "summary": "A stage without an inverse before one that has one",
    "input": {"tokens": [5, 6]},
    "stages": {
        "plain": {
            "depth": 4,
            "coupling": "residual",
            "functions": {"F": ["layer_norm", {"mlp": 2}]},
            "backward": {"checkpoint": {"every": 2}},
        },
        "pair": {
            "depth": 4,
            "coupling": "additive",
            "functions": {"F": ["layer_norm", {"mlp": 2}], "G": ["layer_norm", {"mlp": 2}]},
        },
    },
    "head": [{"pool": "mean"}, {"linear": "classes"}],
    "task": {"classify": {"classes": 3}},
}


def test_nothing_is_kept_of_what_was_profiled() -> None:
    """On a GPU it would be in the next network's numbers."""
    network = Network(resolve(load("rev_vit_digits")))
    memory_use(network, PLAIN, CPU)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_a_stage_without_an_inverse_keeps_what_its_spec_says() -> None:
    """Whatever was tried before; a budget may add to it."""
    backward = "stages.plain.backward={checkpoint: {every: 2, stored: 2, results: 3}}"
    network = Network(resolve(load(MIXED, [backward])))
    plain, pair = network.stages
    spec = repr(plain.checkpoints)
    for schedule in (STORE, *SCHEDULES.values(), REVERSIBLE):
        schedule.apply(network)
    assert (plain.backward, pair.backward) == ("checkpoint", "reversible")
    assert repr(plain.checkpoints) == spec
    assert (plain.stored, plain.results) == (2, 3)
    assert (pair.stored, pair.results) == (0, 0)
    Schedule("a budget", "reversible", kept=Kept(1, 12)).apply(network)
    assert (plain.stored, plain.results) == (2, 4)
    assert (pair.stored, pair.results) == (1, 8)


@pytest.mark.parametrize("settings", [[], ["stages.trunk.smoothness=0.1"]])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_of_training_takes_what_is_predicted(
    settings: list[str], accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's own step, its penalties and all of its batch on the device; and its
    evaluation takes no more."""
    peaks: dict[str, list[int]] = {"take_step": [], "evaluate": []}

    def watched(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: object, **keys: object) -> object:
            parts = arguments[0]
            assert isinstance(parts, Parts)
            with Ledger(parts.model, parts.optimizer) as ledger:
                state = [s for kept in parts.optimizer.state.values() for s in kept.values()]
                grads = [p.grad for p in parts.model.parameters() if p.grad is not None]
                ledger.hold([*parts.model.parameters(), *parts.model.buffers(), *grads, *state])
                del grads
                found = original(*arguments, **keys)
            peaks[name].append(int(ledger.peak))
            return found

        monkeypatch.setattr(module, name, counted)

    watched(runners.loop, "take_step")
    watched(runners.train, "evaluate")
    # Of several steps, those after the first have the optimizer's state.
    loaded = load(
        "rev_vit_digits",
        [
            *settings,
            "train.epochs=1",
            "train.batch=256",
            f"train.accumulate={accumulate}",
            "data.digits.augment=null",
        ],
    )
    runners.train.train(loaded, tmp_path / "run", device="cpu", quiet=True)
    assert loaded.spec.train is not None
    expected = Forecast(resolve(loaded), "cpu").use(loaded.spec.train, Planned()).peak
    assert max(peaks["take_step"]) == pytest.approx(expected, rel=0.02)
    assert max(peaks["evaluate"]) < 1.02 * expected


def test_a_plan_holds_before_a_stage_is_reversed() -> None:
    settings = (
        "stages.trunk.constants.gamma=0.9*(1 - (1 - progress)**4)",
        "stages.trunk.backward={reversible: {from: 0.3}}",
    )
    forecast = Forecast(resolve(load("momrev_vit_digits", settings)), "cpu")
    recipe = PLAIN.model_copy(update={"batch": 64})
    early, late = (forecast.peak(recipe, each) for each in phases(forecast.network, Planned()))
    assert early > late
    forecast = Forecast(resolve(load("momrev_vit_digits")), "cpu")
    assert phases(forecast.network, Planned()) == [Planned()]


def test_on_a_gpu_dropout_keeps_masks() -> None:
    """Of one byte an element beside its result; and a fused attention none."""
    forecasts = {
        name: Forecast(resolve(load("vit_digits", settings)), "cuda")
        for name, settings in {
            "none": [],
            "mlp": ["stages.trunk.functions.G.1.mlp.dropout=0.1"],
            "attention": ["stages.trunk.functions.F.1.attention.dropout=0.1"],
        }.items()
    }
    few, many = (PLAIN.model_copy(update={"batch": batch}) for batch in (64, 128))
    slopes = {
        name: (each.peak(many, STORE) - each.peak(few, STORE)) / 64
        for name, each in forecasts.items()
    }
    (plan,) = (stage.plan for stage in forecasts["mlp"].network.stages)
    assert isinstance(plan.input, Tokens)
    masks = plan.input.count * (2 * plan.input.channels + plan.input.channels)  # hidden, and after
    assert (plan.depth - 1) * masks <= slopes["mlp"] - slopes["none"] <= plan.depth * masks
    assert slopes["attention"] == slopes["none"]


def test_what_this_machine_cannot_hold_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be promised the memory, and be ended for taking it."""

    class Free:
        available = 8 * 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    recipe = PLAIN.model_copy(update={"batch": 64})
    asked = Asked(("store", "reversible"), CPU, True, 1, budget=16 * 2**20)
    rows = {
        row.schedule: row
        for row in profile("n", resolve(load("rev_vit_digits")), recipe, asked, lambda _: None)
    }
    assert "not measured: it takes 2" in rows["stored"].note
    assert rows["stored"].measured is None
    assert rows["reversible"].measured is not None
    assert rows["reversible"].largest_per_second is None
    assert "8 MiB are free" in rows["reversible"].note


def test_rows_that_cannot_be_predicted_are_not_drawn() -> None:
    rows = tuple(Row("n", depth, "stored", 8, None, note="cannot") for depth in (1, 2))
    assert plots(Report(rows, "", {}, ("fp32",), "cpu", True)) == {}


def test_a_profile_leaves_the_precision_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recipe says within, and as it was after."""
    seen = []

    def forward(self: TrainingStep, *rest: object) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return sum(p.sum() for p in nn.Module.parameters(self.network))  # type: ignore[return-value]

    monkeypatch.setattr(TrainingStep, "forward", forward)
    recipe = PLAIN.model_copy(update={"precision": "tf32"})
    asked = Asked(("store",), CPU, True, 1)
    before = torch.get_float32_matmul_precision()
    list(profile("n", resolve(load("vit_digits")), recipe, asked, lambda _: None))
    assert "high" in seen
    assert torch.get_float32_matmul_precision() == before
