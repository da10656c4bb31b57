"""Training from end to end, with a stand-in for the network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from archspec.diagnostics import SpecError
from archspec.loading import Loaded
from runners.progress import Glance, Memory, watching
from runners.standing import Best
from runners.tasks import ACCURACY, SUBOPTIMALITY
from runners.train import TrainingError, train

Tiny = Callable[..., Loaded]
pytestmark = pytest.mark.usefixtures("stand_in")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_its_files(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny("train.epochs=6"), tmp_path, device="cpu", quiet=True)
    assert result.test_metric > 0.8
    assert (result.epochs, result.output, result.device) == (6, str(tmp_path), "cpu")
    assert result.parameters == 64 * 32 + 32 + 32 * 10 + 10
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert names == {
        "best.safetensors", "checkpoint.pt", "last.safetensors", "metrics.jsonl", "result.json",
        "run.json", "spec.yaml", "tensorboard",
    }  # fmt: skip
    records = lines(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert set(records[0]) == {
        "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
        "learning_rate", "seconds", "samples_per_second", "memory_bytes", "memory_kind",
        "data_seconds", "unreadable_files",
    }  # fmt: skip
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("validation/accuracy")] == [1, 2, 3, 4, 5, 6]
    assert result.validation_metric == max(r["validation_accuracy"] for r in records)
    assert records[result.best_epoch - 1]["validation_accuracy"] == result.validation_metric


def test_a_finished_run_only_reports(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tiny(), tmp_path / "a", quiet=True)
    monkeypatch.setattr("runners.train.build_model", lambda _: pytest.fail("built again"))
    assert train(tiny(), tmp_path / "a", quiet=True) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert train(tiny(), tmp_path / "b") == replace(first, output=str(tmp_path / "b"))


def test_the_test_set_is_read_once_after_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners import train as module

    seen = []
    evaluate = module.evaluate

    def watched(parts: object, task: object, split: object, *rest: object) -> object:
        seen.append(len(split))  # type: ignore[arg-type]
        return evaluate(parts, task, split, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluate", watched)
    train(tiny(), tmp_path, quiet=True)
    assert seen == [145, 145, 145, 355]


def test_the_best_has_the_highest_accuracy_and_then_the_lowest_loss() -> None:
    best = Best(3, 0.9, 0.5)
    assert best.beaten_by(0.91, 9.0, ACCURACY)
    assert best.beaten_by(0.9, 0.4, ACCURACY)
    assert not best.beaten_by(0.9, 0.5, ACCURACY)
    assert not best.beaten_by(0.89, 0.1, ACCURACY)
    assert best.beaten_by(0.89, 9.0, SUBOPTIMALITY)
    assert not best.beaten_by(0.91, 0.1, SUBOPTIMALITY)


def test_the_result_is_of_the_best_weights_and_not_the_last(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def learning_rate(recipe: object, step: int, steps: int) -> float:
        del recipe
        return 30.0 if step >= 2 * steps else 2e-3

    monkeypatch.setattr("runners.loop.learning_rate", learning_rate)
    result = train(tiny("train.clip=null"), tmp_path, quiet=True)
    assert result.best_epoch == 2
    assert lines(tmp_path)[2]["validation_accuracy"] < result.test_metric


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_train_too(tiny: Tiny, tmp_path: Path, precision: str) -> None:
    loaded = tiny(f"train.precision={precision}", "train.epochs=4")
    result = train(loaded, tmp_path, device="cpu", quiet=True)
    assert result.test_metric > 0.6


def test_sgd_trains_too(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.optimizer=sgd", "train.learning_rate=0.1")
    assert train(tiny(*settings), tmp_path, quiet=True).test_metric > 0.8


def test_the_seed_determines_the_run(tiny: Tiny, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(f"train.seed={seed}", "train.epochs=1"), tmp_path / name, quiet=True)
    a, b, c = ((tmp_path / name / "last.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_diverging_loss_stops_and_leaves_the_last_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []

    def learning_rate(recipe: object, step: int, steps: int) -> float:
        del recipe
        if step == steps:
            kept.append((tmp_path / "checkpoint.pt").read_bytes())
        return float("inf") if step == steps + 2 else 1e-3

    monkeypatch.setattr("runners.loop.learning_rate", learning_rate)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, step 4 of 20"):
        train(tiny(), tmp_path, quiet=True)
    assert [(tmp_path / "checkpoint.pt").read_bytes()] == kept
    assert len(lines(tmp_path)) == 1


def test_weights_lost_in_the_last_step_of_an_epoch_are_not_kept(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learning_rate(recipe: object, step: int, steps: int) -> float:
        del recipe
        return float("inf") if step == steps - 1 else 1e-3

    monkeypatch.setattr("runners.loop.learning_rate", learning_rate)
    with pytest.raises(TrainingError, match="the validation loss is nan after epoch 1"):
        train(tiny(), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("settings", "device", "code"),
    [
        (("data=null",), "cpu", "E605"),
        (("train=null",), "cpu", "E605"),
        (("input.image=[3, 8, 8]",), "cpu", "E602"),
        ((), "cuda:99", "E603"),
        ((), "abacus", "E603"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...], device: str, code: str
) -> None:
    with pytest.raises(SpecError, match=rf"error\[{code}\]"):
        train(tiny(*settings), tmp_path / "run", device=device, quiet=True)
    assert not (tmp_path / "run").exists()


def test_weight_decay_shrinks_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = {}
    for decay in (0.0, 20.0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        monkeypatch.setattr("runners.train.build_model", lambda _, model=model: model)
        train(tiny(f"train.weight_decay={decay}"), tmp_path / str(decay), quiet=True)
        norms[decay] = float(torch.linalg.vector_norm(model[1].weight.detach()))
    assert norms[20.0] < norms[0.0]


# What a person sees -------------------------------------------------------------------------------

GLANCE = Glance(1, 0.5, 0.875, 1234.5, Memory(3 * 2**20, "GPU peak"))


def test_logs_get_a_line_for_each_epoch(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(), tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 3
    assert captured.err.startswith("epoch 1/3  loss ")
    assert "process RSS" in captured.err


def test_quiet_is_quiet(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(), tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr("runners.progress.Console", lambda **_: screen)
    with watching(False, 4, 10, 1, ACCURACY) as watcher:
        watcher.step(GLANCE)
        watcher.epoch(GLANCE, 0.9, 0.95)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "epoch 1/4" in shown
    assert "loss 0.500 acc 87.50% 1,234/s 3 MiB val 90.00%" in shown  # fits 80 columns
    assert "val 90.00%" in shown
