"""Flow matching: the way from noise to data, the velocity learned, and how it is followed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from finished_runs import finished_run, spec_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archspec.cli import evaluate as cli
from archspec.diagnostics import SpecError
from archspec.loading import load
from archspec.training import FlowMatching
from compiler.network import Network
from runners import fidelity, likeness
from runners.evaluation import evaluate_run
from runners.flow_matching import (
    SOLVERS,
    Velocity,
    arrive,
    guided,
    images_of,
    on_the_way,
    shown,
)
from runners.generation import Solving, VelocitySampler, draw, sampler_of
from runners.labels import NO_LABEL, label_of
from runners.tasks import VelocityMatching
from runners.train import build_model, train
from runners.trained import open_trained

MEAN, SCALE = 1.5, 0.4


def best_velocity(values: Tensor, time: Tensor) -> Tensor:
    """For normal data of this mean and scale, what the squared error is least for: the expected
    data less noise, given where a sample is, which is linear in that."""
    noise, data = 1 - time, time
    variance = noise**2 + data**2 * SCALE**2
    slope = (data * SCALE**2 - noise) / variance
    return MEAN + slope * (values - data * MEAN)


def test_the_way_is_straight() -> None:
    data, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    for moment, wanted in ((0.0, noise), (1.0, data), (0.5, (data + noise) / 2)):
        way = on_the_way(data, noise, torch.full((3, 1), moment))
        torch.testing.assert_close(way.values, wanted)
        torch.testing.assert_close(way.velocity, data - noise)


def test_the_least_squared_error_is_at_the_best_velocity() -> None:
    """The gradient of the loss at the best line through the samples of a moment is nothing."""
    source = torch.Generator().manual_seed(0)
    count = 400_000
    data = MEAN + SCALE * torch.randn(count, 1, generator=source, dtype=torch.float64)
    noise = torch.randn(count, 1, generator=source, dtype=torch.float64)
    for moment in (0.2, 0.5, 0.9):
        way = on_the_way(data, noise, torch.full((count, 1), moment, dtype=torch.float64))
        errors = best_velocity(way.values, way.time) - way.velocity
        for feature in (torch.ones_like(way.values), way.values):
            assert abs(float((errors * feature).mean())) < 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_arrive_where_data_are(solver: str) -> None:
    """In distribution, and the better the more steps there are."""
    noise = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0)).double()
    errors = []
    for steps in (4, 16, 64):
        found = arrive(best_velocity, noise, steps, SOLVERS[solver])
        # The flow of a linear velocity is linear: the exact one keeps quantiles.
        errors.append(float((found - (MEAN + SCALE * noise)).abs().max()))
    order = math.log(errors[1] / errors[2], 4)
    assert errors[2] < (0.06 if solver == "euler" else 0.002)
    assert order > (0.75 if solver == "euler" else 1.75)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_way_takes_one_step(solver: str) -> None:
    noise, data = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    found = arrive(lambda values, time: data - noise, noise, 1, SOLVERS[solver])
    torch.testing.assert_close(found, data)


@given(st.integers(2, 256))
def test_images_come_back_from_what_the_network_sees(levels: int) -> None:
    images = torch.randint(0, levels, (2, 1, 3, 3)) / (levels - 1)
    noise = (torch.rand_like(images) - 0.5) * 1.8 / (levels - 1)  # within the level
    torch.testing.assert_close(images_of(shown(images) + noise, levels), images)
    assert images_of(torch.tensor([-9.0, 9.0]), levels).tolist() == [0, 1]


def test_labels_are_one_or_none() -> None:
    found = label_of(torch.tensor([2, NO_LABEL, 0]), 3)["label"]
    assert found.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert label_of(torch.tensor([2]), None) == {}


def test_guidance_goes_past_what_a_class_says() -> None:
    def constant(number: float) -> Velocity:
        return lambda values, time: torch.full_like(values, number)

    values, time = torch.zeros(2, 3), torch.zeros(2, 1)
    for guidance, wanted in ((0.0, 1.0), (1.0, 3.0), (2.5, 6.0)):
        found = guided(constant(3.0), constant(1.0), guidance)(values, time)
        assert torch.equal(found, torch.full((2, 3), wanted))


def test_fidelity_wants_enough_images() -> None:
    assert cli.FEWEST == likeness.FEWEST
    few = torch.zeros(15, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(SpecError, match="15 images are too few to compare others with"):
        fidelity.measure_likeness(few, few, fidelity.Features("none"))


def test_classes_are_those_of_the_samples_in_every_pass() -> None:
    """torch-fidelity asks for all of them once for each network that it takes features of."""

    class Asked:
        sizes, classes = (1, 2, 2), 3

        def __init__(self) -> None:
            self.labels: list[int] = []

        def images(self, noise: Tensor, labels: Tensor) -> Tensor:
            self.labels += labels.tolist()
            return noise

    sampler = Asked()
    samples = fidelity.Samples(sampler, 1.0, 1, 5)
    for size in (2, 3, 2, 3):
        samples(torch.zeros(size, 4))
    assert sampler.labels == [0, 1, 2, 0, 1] * 2


# Training -----------------------------------------------------------------------------------------


class Heard(torch.nn.Module):
    """Says that nothing moves, and keeps what it was given."""

    def forward(self, values: Tensor, **side: Tensor) -> Tensor:
        self.side = side
        return torch.zeros_like(values)


def test_what_training_draws() -> None:
    images, labels = torch.rand(4000, 1, 2, 2), torch.arange(4000) % 10
    model = Heard()
    torch.manual_seed(0)
    hides = VelocityMatching(FlowMatching(classes=10, unlabelled=0.25, times="logit_normal"))
    outcome = hides.in_training(model, (images, labels))
    time, label = model.side["time"], model.side["label"]
    assert time.shape == (4000, 1)
    assert float(time.logit().mean()) == pytest.approx(0, abs=0.1)
    assert float(time.logit().std()) == pytest.approx(1, abs=0.05)
    known = label.sum(1) == 1
    assert torch.equal(label[known].argmax(1), labels[known])
    assert not label[~known].any()
    assert float(known.float().mean()) == pytest.approx(0.75, abs=0.03)
    # Of a velocity of nothing the error is the second moment of data less noise.
    assert float(outcome.loss) == pytest.approx(1 + float(shown(images).square().mean()), rel=0.03)
    assert float(outcome.measured) == pytest.approx(4000 * float(outcome.loss), rel=1e-5)
    VelocityMatching(FlowMatching()).in_training(model, (images, labels))
    assert list(model.side) == ["time"]
    assert 0.2 < float((model.side["time"] < 0.25).float().mean()) < 0.3


def test_evaluation_draws_the_same_again_and_tells_all_classes() -> None:
    images, labels = torch.rand(50, 1, 2, 2), torch.arange(50) % 10
    model, task = Heard(), VelocityMatching(FlowMatching(classes=10, unlabelled=1.0))
    state = torch.get_rng_state()
    first = task.in_evaluation(model, (images, labels))
    assert torch.equal(model.side["label"].argmax(1), labels)
    parts = [
        task.in_evaluation(model, (images[i : i + 9], labels[i : i + 9])) for i in range(0, 50, 9)
    ]
    torch.testing.assert_close(first.measured, torch.stack([p.measured for p in parts]).sum())
    assert len(set(model.side["time"].flatten().tolist())) == 5
    task.in_evaluation(model, (images, labels))
    values, side = task.seen((images, labels))
    assert values.shape == images.shape
    assert torch.equal(side["time"], model.side["time"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_is_sampled(tmp_path: Path) -> None:
    """Trained, evaluated to the bits of its result, and drawn from; time and classes are heard."""
    result = finished_run("flow_matching", tmp_path / "run", "train.epochs=8")
    assert result.metric == "velocity_error"
    assert result.test_metric < 0.9  # nothing moves: 1.5
    trained = open_trained(tmp_path / "run")
    assert evaluate_run(trained, device="cpu").score.measured == result.test_metric
    sampler = sampler_of(trained, "cpu", Solving(steps=4))
    assert isinstance(sampler, VelocitySampler)
    assert sampler.classes == 10
    images = draw(sampler, 12, 1.0, seed=1, batch=5, label=None)
    assert images.shape == (12, 1, 8, 8)
    assert torch.equal((16 * images).round() / 16, images)
    assert torch.equal(images, draw(sampler, 12, 1.0, seed=1, batch=5, label=None))
    assert not torch.equal(images, draw(sampler, 12, 1.0, seed=1, batch=5, label=3))
    pushed = sampler_of(trained, "cpu", Solving(steps=4, guidance=3.0))
    assert not torch.equal(images, draw(pushed, 12, 1.0, seed=1, batch=5, label=None))


def test_the_backward_pass_stores_no_activations() -> None:
    """Streams of twelve layers take no more than those of six; gradients reach the time."""
    kept = []
    for depth in (6, 12):
        network = build_model(load("rev_dit_digits", [f"stages.trunk.depth={depth}"])).train()
        assert isinstance(network, Network)
        values, time = torch.randn(8, 1, 8, 8), torch.rand(8, 1, requires_grad=True)
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(values, time=time).square().mean()
        (gradient,) = torch.autograd.grad(loss, [time])
        assert gradient.shape == (8, 1)
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        kept.append(sum(size for place, size in saved.items() if place not in weights))
    assert kept[0] == kept[1]


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.digits.augment=[mixup]", "`mixup` makes images that there are not, and the task is"),
        ("train.label_smoothing=0.1", "there are no labels to smooth: the task is flow_matching"),
        ("data={sparse_codes: {samples: 100}}", "the data set sparse_codes holds no images"),
        ("task.flow_matching.classes=7", "digits has 10 classes, and the task 7"),
        ("side.label={features: [9]}", "gives the side input `label`, 10 features, found 9"),
        ("side.more={features: [3]}", "nor the task flow_matching give `more`"),
        ("task={classify: 10}", "nor the task classify give `time`"),
    ],
)
def test_what_does_not_go_with_flow_matching(settings: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        train(spec_of("flow_matching", settings), tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_classes_are_those_of_the_data(tmp_path: Path) -> None:
    settings = ("task.flow_matching.classes=7", "side.label={features: [7]}")
    with pytest.raises(SpecError, match="digits has 10 classes, and the task 7") as refused:
        train(spec_of("flow_matching", *settings), tmp_path / "run", device="cpu", quiet=True)
    assert "flow_matching: {classes: 10}" in str(refused.value)
