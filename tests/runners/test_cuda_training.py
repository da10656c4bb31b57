"""Training on a GPU: `pytest -n 0 tests/runners/test_cuda_training.py` on a machine with one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import spec_of

from archspec.finding import zoo
from archspec.loading import Loaded
from archspec.study import Entrant, Study
from runners import loop
from runners.comparison.arms import baseline_of, open_arms
from runners.comparison.report import report
from runners.comparison.study import run_study
from runners.data import open_data
from runners.encoding import there_and_back
from runners.errors import TrainingStopped
from runners.evaluation import evaluate_run
from runners.generation import draw, sampler_of
from runners.inversion import Trips
from runners.samples import HeldImages
from runners.train import train
from runners.trained import open_trained

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

Tiny = Callable[..., Loaded]
GPU = torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_run_learns(tiny: Tiny, tmp_path: Path, precision: str) -> None:
    settings = ("train.epochs=8", f"train.precision={precision}", "train.watch.gradient=10")
    result = train(tiny(*settings), tmp_path, device="cuda", quiet=True)
    assert result.device.startswith("cuda:0 (")
    assert result.test_metric > 0.5
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["memory_kind"] == "GPU peak"
    assert line["memory_bytes"] > 0


@pytest.mark.parametrize("settings", [(), ("train.ema=0.9", "train.accumulate=2")])
def test_a_stopped_run_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """Dropout draws from the generator of the GPU, whose state is kept."""
    whole = train(tiny(*settings), tmp_path / "whole", device="cuda", quiet=True)
    steps, step = iter(range(27)), loop.take_step

    def signalled(*arguments: Any) -> Any:
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", signalled)
        with pytest.raises(TrainingStopped):
            train(tiny(*settings), tmp_path / "stopped", device="cuda", quiet=True)
    again = train(tiny(*settings), tmp_path / "stopped", device="cuda", quiet=True)
    assert again.test_loss == pytest.approx(whole.test_loss, rel=1e-3)


def test_images_in_memory_live_on_the_gpu(tiny: Tiny) -> None:
    loaded = tiny("data.digits.augment=[]")
    assert loaded.spec.data is not None
    data = open_data(loaded, loaded.spec.data, 0).on(GPU)
    assert isinstance(data.training.samples, HeldImages)
    assert data.training.samples.images.is_cuda
    assert data.training.samples is data.validation.samples


def test_a_trained_network_is_evaluated(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(), tmp_path, device="cuda", quiet=True)
    found = evaluate_run(open_trained(tmp_path), device="cuda")
    assert found.score.measured == pytest.approx(result.test_metric, abs=0.01)


def test_networks_are_compared(tmp_path: Path) -> None:
    settings = ("train.epochs=1", "stages.trunk.depth=2")
    names = ("rev_vit_digits", "vit_digits")
    entrants = tuple(Entrant(name, zoo() / f"{name}.yaml", settings) for name in names)
    study = Study("gpu", entrants, seeds=1)
    arms = open_arms(study)
    measured = run_study(arms, 1, tmp_path, device="cuda", quiet=True)
    found = report(study, baseline_of(study, arms), measured, "")
    assert all(row.gpu_peak for row in found.rows)
    assert "cuda:0 (" in found.machine["device"]


@pytest.mark.parametrize("kind", ["density", "flow_matching"])
def test_networks_that_make_images(kind: str, tmp_path: Path) -> None:
    """Trained, evaluated, inverted, and sampled: of noise that is the same on every device."""
    result = train(spec_of(kind), tmp_path, device="cuda", quiet=True)
    trained = open_trained(tmp_path)
    found = evaluate_run(trained, device="cuda", trips=Trips(images=4))
    assert found.score.measured == pytest.approx(result.test_metric, rel=0.2)
    on_gpu = draw(sampler_of(trained, "cuda"), 8, 1.0, 0, 8, None)
    on_cpu = draw(sampler_of(trained, "cpu"), 8, 1.0, 0, 8, None)
    assert float((on_gpu - on_cpu).abs().mean()) < 0.02
    if kind == "density":
        assert torch.equal(there_and_back(trained, on_gpu, None, "cuda").images, on_gpu)
