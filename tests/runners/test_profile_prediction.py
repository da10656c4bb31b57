"""What is predicted is what is measured: on the CPU to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archspec.loading import load
from archspec.training import Train
from compiler.network import Network
from compiler.resolve import resolve
from runners.profile.ledger import Shares
from runners.profile.measurement import memory_use
from runners.profile.prediction import Forecast
from runners.profile.schedules import REVERSIBLE, SCHEDULES, STORE, Kept, Planned, schedules_of

CPU = torch.device("cpu")
SPECS = ("vit_digits", "rev_vit_digits", "momrev_vit_digits", "rev_mvit_digits", "revnet_digits")


def recipe(**keys: object) -> Train:
    return Train(epochs=1, batch=8, learning_rate=1e-3).model_copy(update=keys)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicted_is_measured(name: str, precision: str) -> None:
    """Peak, steady bytes and what they are for, by every strategy that a network can do. In half
    precision a convolution's kernel may lay out its weights anew, which is not known of it."""
    plan = resolve(load(name))
    forecast, network = Forecast(plan, "cpu"), Network(plan)
    for schedule in schedules_of(network, tuple(SCHEDULES)):
        schedule.apply(network)
        taken = recipe(precision=precision)
        found = memory_use(network, taken, CPU)
        expected = forecast.use(taken, schedule)
        assert expected == found or (
            precision == "bf16"
            and any("conv" in name for name in network.state_dict())
            and expected.peak == pytest.approx(found.peak, rel=0.01)
        )
        assert found.shares.total == found.peak
        assert found.steady < found.peak


def test_shares_of_a_stored_step() -> None:
    """What is known from the network: a parameter is four bytes, AdamW keeps two of each."""
    plan = resolve(load("vit_digits"))
    use = Forecast(plan, "cpu").use(recipe(), STORE)
    count = sum(p.numel() for p in Network(plan).parameters())
    assert use.shares.parameters == 4 * count
    assert use.shares.optimizer >= 8 * count
    assert use.steady >= 12 * count
    assert (use.shares.streams, use.shares.information) == (0, 0)


def test_shares_of_a_reversible_step() -> None:
    settings = ["stages.trunk.arithmetic=exact", "stages.trunk.depth=12"]
    plan = resolve(load("momrev_vit_digits", settings))
    forecast = Forecast(plan, "cpu")
    use = forecast.use(recipe(batch=64), REVERSIBLE)
    assert use.shares.information > 0
    assert use.shares.streams > 0
    stored = forecast.use(recipe(batch=64), STORE)
    assert use.shares.saved < stored.shares.saved / 8
    part = forecast.use(recipe(batch=64), replace(REVERSIBLE, kept=Kept(6)))
    assert use.peak < part.peak < stored.peak


def test_an_average_of_the_weights_is_held_too() -> None:
    plan = resolve(load("vit_digits"))
    forecast = Forecast(plan, "cpu")
    plain, averaged = (forecast.use(recipe(ema=ema), STORE) for ema in (None, 0.99))
    assert averaged.shares.parameters == 2 * plain.shares.parameters
    assert averaged.peak == plain.peak + plain.shares.parameters


def test_a_batch_in_parts_takes_less() -> None:
    plan = resolve(load("vit_digits"))
    forecast = Forecast(plan, "cpu")
    whole, parts = (forecast.use(recipe(batch=64, accumulate=n), STORE) for n in (1, 4))
    assert parts.shares.saved < 0.3 * whole.shares.saved


@pytest.mark.parametrize(
    "name",
    [*SPECS, "bdia_vit_digits"],
)
def test_a_gpu_is_predicted_without_one(name: str) -> None:
    """Autocast's rules are CUDA's, in replays too, and kernels have their workspace."""
    plan = resolve(load(name))
    on_gpu, here = Forecast(plan, "cuda"), Forecast(plan, "cpu")
    for schedule in schedules_of(on_gpu.network, tuple(SCHEDULES)):
        taken = recipe(precision="bf16")
        extra = on_gpu.use(taken, schedule).peak - here.use(taken, schedule).peak
        assert 64 * 2**20 <= extra < 72 * 2**20


def test_binomial_checkpoints_let_go_of_what_they_replay() -> None:
    """Under the ledger's hooks too."""
    settings = ("stages.trunk.backward={checkpoint: {slots: 2}}", "stages.trunk.depth=4")
    forecast = Forecast(resolve(load("vit_digits", settings)), "cpu")
    use = forecast.use(recipe(), Planned())
    assert use.steady < 4.1 * use.shares.parameters


def test_a_stage_that_is_reversed_later_is_predicted_as_at_the_end() -> None:
    settings = (
        "stages.trunk.constants.gamma=0.9*(1 - (1 - progress)**4)",
        "stages.trunk.backward={reversible: {from: 0.3}}",
    )
    late, always = (resolve(load("momrev_vit_digits", s)) for s in (settings, ()))
    first, other = (Forecast(p, "cpu").use(recipe(), REVERSIBLE).peak for p in (late, always))
    assert first == pytest.approx(other, rel=0.05)


def test_nothing_is_left_of_a_forecast(tmp_path: Path) -> None:
    """The global generator, modes and gradients."""
    state, mode = torch.get_rng_state(), torch.is_grad_enabled()
    forecast = Forecast(resolve(load("rev_vit_digits")), "cuda")
    first = forecast.use(recipe(), REVERSIBLE)
    assert forecast.use(recipe(), REVERSIBLE) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == mode
    assert all(p.grad is None for p in forecast.network.parameters())
    assert isinstance(first.shares, Shares)
