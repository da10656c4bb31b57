"""Processes that read end with what they read for."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_run import assert_same_run, comparable

from archspec.diagnostics import SpecError
from archspec.dumping import dump
from archspec.loading import Loaded
from runners import loop
from runners.errors import TrainingError, TrainingStopped
from runners.train import train

Tiny = Callable[..., Loaded]


def spec_of(tiny: Tiny, folder: Path, *settings: str, **keys: object) -> Loaded:
    data = {"path": str(folder), "workers": 2, "validation": 0.25, **keys}
    given: dict[str, Any] = {"data": {"image_folder": data}, "task": {"classify": {"classes": 2}}}
    return tiny("train.epochs=2", "train.batch=4", *settings, **given)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which has to end."""
    whole = [sys.executable, "-m", "archspec", *arguments]
    return subprocess.run(whole, cwd=cwd, capture_output=True, text=True, timeout=120)


def damage(folder: Path, part: str) -> Path:
    path = folder / part / "light" / "15.png"
    path.write_bytes(b"no image")
    return path


def test_an_error_ends_a_run_and_its_workers(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    """Errors keep the frames that they were raised in, and with them whoever read there."""
    damaged = damage(photographs, "train")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(dump(spec_of(tiny, photographs, strict=True).tree), encoding="utf-8")
    done = command("train", str(spec), "--output", "run", "--quiet", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert str(damaged) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loss_that_diverges_ends_them(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    loaded = spec_of(tiny, photographs, "train.learning_rate=1e30", "train.warmup=0")
    with pytest.raises(TrainingError):
        train(loaded, tmp_path / "run", device="cpu", quiet=True)
    assert multiprocessing.active_children() == []


def test_an_evaluation_ends_them(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    train(spec_of(tiny, photographs), tmp_path / "run", device="cpu", quiet=True)
    assert multiprocessing.active_children() == []
    damage(photographs, "test")
    data = f"{{image_folder: {{path: '{photographs}', strict: true, workers: 2}}}}"
    done = command("evaluate", "run", "--data", data, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_goes_on_with_its_classes_alone(
    tiny: Tiny, photographs: Path, tmp_path: Path
) -> None:
    """Another name moves the labels of all."""
    loaded = spec_of(tiny, photographs)
    train(loaded, tmp_path / "run", device="cpu", quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    for part in ("train", "test"):
        (photographs / part / "dark").rename(photographs / part / "shade")
    with pytest.raises(SpecError, match=r"E604.* class 0 was dark, and is light"):
        train(loaded, tmp_path / "run", device="cpu", quiet=True)
    classes = tmp_path / "run" / "classes.json"
    assert json.loads(classes.read_text()) == ["dark", "light"]
    classes.write_text('["dark", ')
    with pytest.raises(SpecError, match=r"E604.*classes\.json holds no names of classes"):
        train(loaded, tmp_path / "run", device="cpu", quiet=True)


def test_workers_and_pauses_change_nothing(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    """Images in files, changed one by one as they are read."""
    keys: dict[str, Any] = {
        "augment": ["random_resized_crop", {"rand_augment": {"operations": 1}}],
        "mean": [0.5],
        "std": [0.5],
    }
    settings = ("train.batch=8", "stages.trunk.depth=1")
    alone = spec_of(tiny, photographs, *settings, workers=0, **keys)
    helped = spec_of(tiny, photographs, *settings, workers=2, **keys)
    whole = train(alone, tmp_path / "whole", device="cpu", quiet=True)
    step, steps = loop.take_step, iter(range(4))

    def signalled(*arguments: Any) -> Any:
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", signalled)
        with pytest.raises(TrainingStopped):
            train(helped, tmp_path / "helped", device="cpu", quiet=True)
    again = train(helped, tmp_path / "helped", device="cpu", quiet=True)
    assert comparable(again) == comparable(whole)
    assert_same_run(tmp_path / "helped", tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_strict_run_ends_with_one_message(
    tiny: Tiny, photographs: Path, tmp_path: Path, workers: int
) -> None:
    for file in (photographs / "train" / "dark").iterdir():
        file.write_text("no image")
    loaded = spec_of(tiny, photographs, workers=workers, strict=True)
    with pytest.raises(TrainingError, match=r"^cannot read the image .*dark") as caught:
        train(loaded, tmp_path / "run", device="cpu", quiet=True)
    assert "Traceback" not in str(caught.value)


def test_an_unreadable_batch_is_left_out_of_a_test(
    tiny: Tiny, photographs: Path, tmp_path: Path
) -> None:
    last = damage(photographs, "test")
    loaded = spec_of(tiny, photographs, "train.epochs=1", "train.batch=31", workers=0)
    assert train(loaded, tmp_path / "run", device="cpu", quiet=True).epochs == 1
    assert str(last) in json.loads((tmp_path / "run" / "unreadable.json").read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no groups of processes")
def test_a_terminal_interrupts_workers_too(tiny: Tiny, photographs: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a run: workers read on until the step is saved."""
    spec = tmp_path / "tiny.yaml"
    loaded = spec_of(tiny, photographs, "train.epochs=500", "train.batch=2")
    spec.write_text(dump(loaded.tree), encoding="utf-8")
    command = [sys.executable, "-m", "archspec", "train", str(spec), "--output", "run", "--quiet"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("stopped by SIGINT after"), err
