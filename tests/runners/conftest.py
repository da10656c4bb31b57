"""A small spec, and a stand-in for its network where the network does not matter."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from archspec.loading import Loaded, load

TINY: dict[str, Any] = {
    "archspec": 1,
    "name": "tiny",
    "summary": "A network for tests of training",
    "input": {"image": [1, 8, 8]},
    "stem": [{"patch_embed": {"patch": 4, "width": 16}}, {"position": "learned"}],
    "stages": {
        "trunk": {
            "depth": 1,
            "coupling": "additive",
            "functions": {
                "F": ["layer_norm", {"attention": {"heads": 2}}],
                "G": ["layer_norm", {"mlp": {"ratio": 1, "dropout": 0.1}}],
            },
        }
    },
    "head": ["layer_norm", {"pool": "mean"}, {"linear": "classes"}],
    "task": {"classify": {"classes": 10}},
    "data": {"digits": {"augment": [{"random_affine": {"degrees": 10, "translate": 0.1}}]}},
    "train": {
        "epochs": 3,
        "batch": 64,
        "learning_rate": 2e-3,
        "warmup": 1,
        "weight_decay": 0.05,
        "clip": 1.0,
        "label_smoothing": 0.1,
    },
}


@pytest.fixture
def tiny() -> Callable[..., Loaded]:
    """Loads the small spec with settings, `path.to.key=value`, and top-level keys replaced."""

    def make(*settings: str, **replaced: object) -> Loaded:
        spec = {**deepcopy(TINY), **replaced}
        return load({k: v for k, v in spec.items() if v is not None}, settings)

    return make


def small_network(loaded: Loaded) -> nn.Module:
    """Fast, and with dropout, so that it draws from the global generator."""
    inputs, classes = 1, loaded.spec.task.sizes["classes"]
    for size in loaded.spec.input.shape.sizes:
        inputs *= size
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, classes)
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains `small_network` in place of the spec's own."""
    monkeypatch.setattr("runners.train.build_model", small_network)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of grey images of two classes, each image another."""
    folder = tmp_path / "photos"
    source = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for label in ("dark", "light"):
            (folder / part / label).mkdir(parents=True)
            for number in range(16):
                noise = torch.randint(0, 160, (12, 12), generator=source, dtype=torch.uint8)
                pixels = noise + (80 if label == "light" else 0)
                Image.fromarray(pixels.numpy()).save(folder / part / label / f"{number}.png")
    return folder
