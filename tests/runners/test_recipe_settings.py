"""What a recipe asks for besides an optimizer: averages, parts of batches, an end, a precision."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from archspec.loading import Loaded
from archspec.training import Train
from compiler.network import build
from compiler.resolve import resolve
from runners import loop
from runners.data import open_data
from runners.devices import matrix_precision, open_fabric
from runners.errors import TrainingError
from runners.layout import channels_last_where_it_pays
from runners.loop import differentiate, take_step
from runners.optim import layer_heights, parameter_groups, set_learning_rate
from runners.parts import Parts, set_up
from runners.tasks import open_task
from runners.train import build_model, recipe_and_data, train
from runners.weights import load_weights

Tiny = Callable[..., Loaded]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parts_of(loaded: Loaded, model: nn.Module | None = None) -> tuple[Parts, Train]:
    recipe, _ = recipe_and_data(loaded)
    torch.manual_seed(0)
    return set_up(open_fabric(loaded, recipe, "cpu"), model or build_model(loaded), recipe), recipe


def batch_of(loaded: Loaded, size: int) -> tuple[Tensor, Tensor]:
    recipe, entry = recipe_and_data(loaded)
    split = open_data(loaded, entry, recipe.seed).validation
    images, labels, _ = split.samples.__getitems__(split.indices[:size].tolist())
    return split.prepare(images, labels)


# Steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 64])
def test_a_batch_in_parts_is_the_same_step(tiny: Tiny, accumulate: int) -> None:
    loaded = tiny(
        f"train.accumulate={accumulate}", "stages.trunk.functions.G=[layer_norm, {mlp: 1}]"
    )
    found = {}
    for name, settings in (("whole", tiny("train.accumulate=1")), ("parts", loaded)):
        parts, _ = parts_of(loaded)
        parts.model.double()
        _, recipe = parts_of(settings)
        images, labels = batch_of(loaded, 13)
        seen = differentiate(parts, open_task(loaded), recipe, (images.double(), labels))
        found[name] = [seen.double(), *(p.grad for p in parts.model.parameters())]
    for one, other in zip(found["whole"], found["parts"], strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_the_average_follows_the_weights(tiny: Tiny) -> None:
    loaded = tiny("train.ema=0.75")
    parts, recipe = parts_of(loaded)
    assert parts.average is not None
    name, weight = next(iter(parts.model.named_parameters()))
    expected, steps = None, 6
    for step in range(steps):
        set_learning_rate(parts.optimizer, 0.01)
        take_step(parts, open_task(loaded), recipe, batch_of(loaded, 8))
        now = weight.detach().clone()
        kept = min(0.75, (1 + step) / (10 + step))
        expected = now if expected is None else kept * expected + (1 - kept) * now
    assert expected is not None
    averaged = dict(parts.average.module.named_parameters())[name]
    torch.testing.assert_close(averaged, expected)
    assert not torch.equal(averaged, weight)
    assert parts.evaluated is parts.average.module


@pytest.mark.usefixtures("stand_in")
def test_the_average_is_what_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny("train.ema=0.8", "train.epochs=6"), tmp_path, quiet=True)
    assert result.test_metric > 0.8
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    last = load_file(tmp_path / "last.safetensors")
    for name, value in last.items():
        assert torch.equal(value, content["average"][f"module.{name}"])
        assert not torch.equal(value, content["model"][name])


def test_each_layer_has_its_share_of_the_rate(tiny: Tiny) -> None:
    loaded = tiny("stages.trunk.depth=3", "train.layer_decay=0.5")
    parts, recipe = parts_of(loaded)
    heights = layer_heights(parts.model)
    assert {n.split(".")[0]: h for n, h in heights.items()} == {"stem": 0, "stages": 3, "head": 4}
    assert [heights[f"stages.trunk.layers.{n}.F.layer_norm.weight"] for n in range(3)] == [1, 2, 3]
    set_learning_rate(parts.optimizer, 1.0)
    rates = {id(p): group["lr"] for group in parts.optimizer.param_groups for p in group["params"]}
    for name, parameter in parts.model.named_parameters():
        assert rates[id(parameter)] == 0.5 ** (4 - heights[name])
    groups = parameter_groups(parts.model, recipe.weight_decay)
    assert [group["share"] for group in groups] == [1.0, 1.0]
    assert sum(len(g["params"]) for g in groups) == len(list(parts.model.parameters()))


def test_tf32_is_for_the_run_alone() -> None:
    recipe = Train(epochs=1, batch=1, learning_rate=1.0, precision="tf32")
    before = torch.get_float32_matmul_precision()
    with matrix_precision(recipe):
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == before
    convolutions = torch.backends.cudnn.allow_tf32
    with matrix_precision(recipe.model_copy(update={"precision": "fp32"})):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == convolutions


CONVOLUTIONS: dict[str, Any] = {
    "stem": [{"conv": {"out": 8}}],
    "stages": {
        "trunk": {
            "depth": 2,
            "coupling": "additive",
            "functions": {name: ["batch_norm", "relu", {"conv": {}}] for name in "FG"},
        }
    },
    "head": [{"pool": "mean"}, {"linear": "classes"}],
}


def test_convolutions_are_channels_last_where_it_pays(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("train.epochs=1", **CONVOLUTIONS)
    torch.manual_seed(0)
    model: Any = build_model(loaded)
    torch.manual_seed(0)
    plain: Any = build(resolve(loaded))
    kernels = [p for p in model.parameters() if p.dim() == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    images, labels = batch_of(loaded, 8)
    streams = model.stages[0].split(model.stem(images))
    assert all(s.is_contiguous(memory_format=torch.channels_last) for s in streams)
    losses = [nn.functional.cross_entropy(network(images), labels) for network in (model, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    result = train(loaded, tmp_path, device="cpu", quiet=True)
    load_weights(tmp_path / "best.safetensors", plain)
    assert result.parameters == sum(p.numel() for p in plain.parameters())


def test_other_networks_stay_as_they_are(tiny: Tiny) -> None:
    for network in (build_model(tiny()), nn.Conv2d(3, 3, 3)):
        layout = [p.is_contiguous() for p in channels_last_where_it_pays(network).parameters()]
        assert all(layout)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own compiler
def test_a_compiled_network_trains_as_well(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "stages.trunk.functions.G=[layer_norm, {mlp: 1}]")
    eager = train(tiny(*settings), tmp_path / "eager", device="cpu", quiet=True)
    loaded = tiny(*settings, "train.compile=true", "train.ema=0.5")
    compiled = train(loaded, tmp_path / "compiled", device="cpu", quiet=True)
    assert lines(tmp_path / "compiled")[0]["train_loss"] == pytest.approx(
        lines(tmp_path / "eager")[0]["train_loss"], rel=1e-3
    )
    assert compiled.parameters == eager.parameters
    names = [set(load_file(tmp_path / n / "best.safetensors")) for n in ("eager", "compiled")]
    assert names[0] == names[1]
    torch._dynamo.reset()


# Ends ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_patience_ends_a_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loop, "learning_rate", lambda recipe, step, steps: 2e-3 if step < 2 * steps else 30.0
    )
    settings = ("train.epochs=50", "train.patience=3", "train.clip=null")
    result = train(tiny(*settings), tmp_path, quiet=True)
    assert result.epochs == result.best_epoch + 3 < 50
    assert len(lines(tmp_path)) == result.epochs


@pytest.mark.usefixtures("stand_in")
def test_time_ends_a_run_within_an_epoch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = 0, loop.take_step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(*arguments)

    monkeypatch.setattr(loop, "take_step", counted)
    for module in ("runners.run", "runners.train"):
        monkeypatch.setattr(
            f"{module}.out_of_time", lambda recipe, seconds: steps >= 27 and seconds > 0
        )
    result = train(tiny("train.epochs=50", "train.max_minutes=10"), tmp_path, quiet=True)
    assert (steps, result.epochs, len(lines(tmp_path))) == (27, 2, 2)
    assert (tmp_path / "result.json").is_file()


# What goes wrong ----------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """Gives infinity in its third batch in training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, value: Tensor) -> Tensor:
        self.calls += self.training
        return value / 0 if self.calls > 2 else value


def test_a_loss_that_is_not_finite_names_the_layer(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("stages.trunk.depth=2")
    model: Any = build_model(loaded)
    function = model.stages[0].layers[1].G
    function.layer_norm = nn.Sequential(function.layer_norm, Overflowing())
    model.set_backward("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.train.build_model", lambda _: model)
        with pytest.raises(TrainingError) as caught:
            train(loaded, tmp_path, device="cpu", quiet=True)
    text = str(caught.value)
    assert "the loss is nan in epoch 1, step 3 of 20" in text
    assert "the activations of `stages.trunk.layers.1.G.layer_norm.1` went first" in text
    assert "may help" in text


def test_drift_is_told_with_a_loss_that_is_not_finite(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("train.learning_rate=1e30", "train.clip=null", "train.warmup=0")
    with pytest.raises(TrainingError) as caught:
        train(loaded, tmp_path, device="cpu", quiet=True)
    assert re.search(r"the inverse of trunk gives (no finite )?streams back", str(caught.value))


def test_a_gradient_that_is_not_finite_spoils_no_weights(tiny: Tiny) -> None:
    loaded = tiny()
    parts, recipe = parts_of(loaded)
    before = {n: p.detach().clone() for n, p in parts.model.named_parameters()}
    weight = next(parts.model.parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(loop.NotFiniteError, match="the norm of its gradient inf"):
        take_step(parts, open_task(loaded), recipe, batch_of(loaded, 8))
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before[name])


# Watching inverses --------------------------------------------------------------------------------


def test_inverses_are_watched_by_the_step(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = "train.watch={roundtrip: 5, gradient: 15}"
    train(tiny(watch, "train.epochs=2"), tmp_path / "with", device="cpu", quiet=True)
    board = EventAccumulator(str(tmp_path / "with" / "tensorboard" / "steps")).Reload()
    for tag, steps in (
        ("roundtrip error/trunk", list(range(5, 41, 5))),
        ("gradient error/trunk", [15, 30]),
    ):
        events = board.Scalars(tag)
        assert [event.step for event in events] == steps
        assert all(0 < event.value < 1e-5 for event in events)
    assert not caplog.text
    train(tiny("train.epochs=2"), tmp_path / "without", device="cpu", quiet=True)
    one, other = (tmp_path / n / "last.safetensors" for n in ("with", "without"))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_warns_once_of_an_inverse_that_is_lost(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = {
        "depth": 24,
        "coupling": "momentum",
        "functions": {"F": ["layer_norm", {"mlp": 1}]},
        "constants": {"gamma": 0.5},
    }
    loaded = tiny("train.epochs=3", "train.watch.gradient=5", stages={"trunk": stage})
    train(loaded, tmp_path, device="cpu", quiet=True)
    (record,) = caplog.records
    assert "step 5: the gradient error of stage `trunk` is " in record.message
    assert "`arithmetic: exact`, `gamma: 0." in record.message


def test_a_lost_inverse_without_a_linear_reason_has_a_cure_too(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny("train.epochs=1", "train.watch={roundtrip: 5, warn: 1e-12}")
    train(loaded, tmp_path, device="cpu", quiet=True)
    (record,) = caplog.records
    assert "`arithmetic: exact` or `store_every: 1` keeps it small" in record.message
