"""Processes that read end with what they read for."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from archspec.diagnostics import SpecError
from archspec.dumping import dump
from archspec.loading import Loaded
from runners.errors import TrainingError
from runners.train import train

Tiny = Callable[..., Loaded]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Grey images of two classes, each another."""
    source = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for label in ("dark", "light"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for number in range(16):
                noise = torch.randint(0, 160, (12, 12), generator=source, dtype=torch.uint8)
                pixels = noise + (80 if label == "light" else 0)
                path = tmp_path / "photos" / part / label / f"{number}.png"
                Image.fromarray(pixels.numpy()).save(path)
    return tmp_path / "photos"


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
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["dark", "light"]
