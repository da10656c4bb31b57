"""Dequantisation, bits per dimension, and the Gaussian that densities are held against."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from archspec.diagnostics import SpecError
from archspec.loading import load
from runners.data import in_order, open_data, read
from runners.density import Levels, bits_per_dimension, fitted_gaussian
from runners.encoding import there_and_back
from runners.errors import TrainingError
from runners.evaluation import evaluate_run
from runners.export import FORMATS
from runners.generation import draw, sampler_of
from runners.generation_evaluation import all_images, gaussian_bits, gaussian_of
from runners.tasks import open_task
from runners.train import train
from runners.trained import open_trained


def images_of(levels: Levels, count: int = 5) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    whole = torch.randint(0, levels.count, (count, 2, 3, 3), generator=source)
    return whole.double() / (levels.count - 1)


@given(st.integers(2, 256), st.one_of(st.none(), st.floats(1e-6, 0.4)))
def test_values_are_of_their_levels_and_their_volume_is_known(
    count: int, margin: float | None
) -> None:
    levels = Levels(count, margin)
    images = images_of(levels)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)).double()
    noise = noise.clamp(1e-6, 1 - 1e-6).requires_grad_()
    values, change = levels.values(images, noise)
    assert torch.equal(levels.images(values.detach()), images)
    # From levels to values each number is stretched by the derivative over its noise.
    (slope,) = torch.autograd.grad(values.sum(), noise)
    torch.testing.assert_close(change, slope.log().flatten(1).sum(1))


def test_what_knows_nothing_takes_all_the_bits() -> None:
    levels = Levels(32)
    images = images_of(levels)
    _, change = levels.values(images, torch.full_like(images, 0.5))
    uniform = torch.zeros(len(images), dtype=torch.float64)  # between -1/2 and 1/2
    bits = bits_per_dimension(uniform + change, images[0].numel())
    torch.testing.assert_close(bits, torch.full_like(bits, 5.0))


def test_a_gaussian_is_that_of_the_sample() -> None:
    source = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=source, dtype=torch.float64)
    vectors = torch.randn(500, 4, generator=source, dtype=torch.float64) @ mixing + 2
    found = fitted_gaussian(vectors.split(120))
    wanted = MultivariateNormal(vectors.mean(0), torch.cov(vectors.mT, correction=0))
    torch.testing.assert_close(found.log_density(vectors), wanted.log_prob(vectors))
    noise = torch.randn(20_000, 4, generator=source, dtype=torch.float64)
    torch.testing.assert_close(
        torch.cov(found.from_noise(noise).mT), wanted.covariance_matrix, rtol=0.1, atol=0.1
    )


def test_a_short_run_is_better_than_a_gaussian(tmp_path: Path) -> None:
    """The bar of 0.3 bits is that of the whole recipe; a fifth of it has most of them."""
    loaded = load("realnvp_digits", ["stages.trunk.depth=4", "train.epochs=12"])
    result = train(loaded, tmp_path / "run", device="cpu", quiet=True)
    assert loaded.spec.data is not None
    data, task = open_data(loaded, loaded.spec.data, 0), open_task(loaded)
    levels = task.levels  # type: ignore[attr-defined]
    gaussian = gaussian_of(data, levels, 64, 64)
    assert gaussian is not None
    bits = gaussian_bits(gaussian, levels, all_images(data.test, 64))
    assert 2.8 < bits < 3.1
    assert result.metric == "bits_per_dimension"
    assert result.test_metric == pytest.approx(result.test_loss)
    assert result.test_metric < bits - 0.3
    found = evaluate_run(open_trained(tmp_path / "run"), device="cpu")
    assert found.score.measured == result.test_metric
    assert found.generation is not None
    assert found.generation.gaussian_bits == pytest.approx(bits)
    assert json.loads(json.dumps(found.as_json()))["generation"]["fidelity"] is None


def test_a_density_given_classes(tmp_path: Path) -> None:
    """An image is likelier by its own class than by another; samples are of what is asked for."""
    program = [
        "f := F(x2, label)",
        "x1 = exp(tanh(S(f)))*x1 + T(f)",
        "g := G(x1, label)",
        "x2 = exp(tanh(U(g)))*x2 + V(g)",
    ]
    hidden = "[concat, linear: 64, relu]"
    settings = [
        "task.density.classes=10",
        "side={label: {features: [10]}}",
        f"stages.trunk.functions.F={hidden}",
        f"stages.trunk.functions.G={hidden}",
        f"stages.trunk.update={json.dumps(program)}",
        "stages.trunk.depth=4",
        "train.epochs=12",
    ]
    loaded = load("realnvp_digits", settings)
    result = train(loaded, tmp_path / "run", device="cpu", quiet=True)
    trained = open_trained(tmp_path / "run")
    assert evaluate_run(trained, device="cpu").score.measured == result.test_metric
    assert loaded.spec.data is not None
    data, task = open_data(loaded, loaded.spec.data, 0), open_task(loaded)
    images, labels = next(read(data.test, in_order(data.test, 100), torch.device("cpu")))
    own, others = (
        float(task.in_evaluation(trained.model, (images, each)).loss.detach())
        for each in (labels, (labels + 1) % 10)
    )
    assert own < others - 0.02
    sampler = sampler_of(trained, "cpu")
    assert sampler.classes == 10
    asked = [draw(sampler, 4, 1.0, 0, 4, label) for label in (1, 2)]
    assert not torch.equal(*asked)
    back = there_and_back(trained, asked[0], 1, "cpu")
    assert torch.equal(back.images, asked[0])


def test_a_density_in_exact_arithmetic_is_sampled(tmp_path: Path) -> None:
    """In floating point, by the same weights: what exact updates lose of a sample, nobody kept."""
    settings = ["stages.trunk.arithmetic=exact", "stages.trunk.depth=2", "train.epochs=1"]
    train(load("realnvp_digits", settings), tmp_path / "run", device="cpu", quiet=True)
    trained = open_trained(tmp_path / "run")
    images = draw(sampler_of(trained, "cpu"), 4, 1.0, 0, 4, None)
    back = there_and_back(trained, images, None, "cpu")
    assert torch.equal(back.images, images)
    assert back.largest_error < 1e-3  # the grid's half a step, of logits


def test_data_are_not_normalised() -> None:
    loaded = load("realnvp_digits")
    assert loaded.spec.data is not None
    data = open_data(loaded, loaded.spec.data, 0)
    images = all_images(data.test, 64)
    assert float(images.min()) == 0
    assert float(images.max()) == 1
    assert torch.equal(images * 16, (images * 16).round())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.digits.augment=[mixup]", "`mixup` makes images that there are not"),
        ("data.digits.augment=[random_erasing]", "`random_erasing` makes images that there are"),
        ("train.label_smoothing=0.1", "there are no labels to smooth: the task is density"),
        ("data={sparse_codes: {samples: 100}}", "the data set sparse_codes holds no images"),
    ],
)
def test_what_does_not_go_with_a_density(settings: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        train(load("realnvp_digits", [settings]), tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_density_that_gives_nothing_finite_is_told(tmp_path: Path) -> None:
    settings = ["stages.trunk.depth=1", "train.epochs=1", "train.warmup=0"]
    train(load("realnvp_digits", settings), tmp_path / "run", device="cpu", quiet=True)
    trained = open_trained(tmp_path / "run")
    with torch.no_grad():
        next(trained.model.parameters()).fill_(math.nan)
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(TrainingError, match="not finite"):
        there_and_back(trained, images, None, "cpu")
    with pytest.raises(TrainingError, match="not finite"):
        draw(sampler_of(trained, "cpu"), 2, 1.0, 0, 2, None)


def test_few_samples_have_no_gaussian() -> None:
    loaded = load("realnvp_digits", ["data.digits.validation=0.97"])
    assert loaded.spec.data is not None
    data, task = open_data(loaded, loaded.spec.data, 0), open_task(loaded)
    assert len(data.training) < 64
    assert gaussian_of(data, task.levels, 64, 64) is None  # type: ignore[attr-defined]
    assert math.isfinite(data.validation.indices.sum().item())


def test_noise_and_several_scales(tmp_path: Path) -> None:
    """Nothing is to be learned of noise: it takes all of its eight bits."""
    settings = ["data={fake: {samples: 64, tests: 16}}", "train.batch=16", "train.epochs=2"]
    for stage in ("fine", "middle", "coarse"):
        settings.append(f"stages.{stage}.depth=1")
        settings += [f"stages.{stage}.functions.{name}.0.conv.out=8" for name in ("F", "G")]
    result = train(load("glow_cifar10", settings), tmp_path / "run", device="cpu", quiet=True)
    assert 7.9 < result.test_metric < 12


def test_a_density_is_exported(tmp_path: Path) -> None:
    """As a program of images of any number to their log-densities."""
    settings = ["stages.trunk.depth=1", "train.epochs=1", "train.warmup=0"]
    train(load("realnvp_digits", settings), tmp_path / "run", device="cpu", quiet=True)
    trained = open_trained(tmp_path / "run")
    FORMATS["torch"][1](trained, tmp_path / "flow.pt2", None)
    program = torch.export.load(tmp_path / "flow.pt2").module()
    values = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(values), trained.model(values))
