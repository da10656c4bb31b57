"""docs/language.md has every kind of layer, map, task, data set and optimizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from archspec.augmentation import AnyAugmentation
from archspec.data import AnyData, Cifar10
from archspec.layers import AnyLayer
from archspec.loading import load
from archspec.maps import AnyMap
from archspec.onekey import kinds_of
from archspec.spec import AnyInput
from archspec.training import AnyOptimizer, AnyTask
from runners.other_data import STATISTICS

PAGE = (Path(__file__).parents[1] / "docs" / "language.md").read_text(encoding="utf-8")
KINDS = [
    kind
    for union in (AnyLayer, AnyMap, AnyInput, AnyAugmentation, AnyData, AnyOptimizer, AnyTask)
    for model in get_args(union)
    for kind in kinds_of(model)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_described(kind: str) -> None:
    assert re.search(rf"[`{{ ]{kind}\b", PAGE)


@pytest.mark.parametrize("model", get_args(AnyLayer), ids=lambda model: model.__name__)
def test_every_layer_has_its_row_with_its_settings(model: type) -> None:
    (kind, *_) = kinds_of(model)
    rows = [row for row in PAGE.splitlines() if re.match(rf"\|.*`{kind}`.*\|", row)]
    assert rows, kind
    for name in model.model_fields:
        if name not in ("kind", "by", "embedding", "rate"):
            assert any(f"`{name}`" in row or "the same" in row for row in rows), (kind, name)


@pytest.mark.parametrize("kind", STATISTICS)
def test_what_images_are_normalised_by_is_quoted(kind: str) -> None:
    mean, std = (v[0] if len(v) == 1 else v for v in STATISTICS[kind])
    assert f"{mean} and {std}" in PAGE
    assert f"`{kind}` {mean} and {std}" in PAGE or kind == "imagenet"  # that has those of folders


def test_the_recipe_of_the_page_trains(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(archspec: 1\nrecipe: mine\n.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(recipe)
    spec = tmp_path / "spec.yaml"
    spec.write_text("archspec: 1\nname: mine\nextends: rev_vit_cifar10\nrecipe: mine\n")
    loaded = load(spec).spec
    assert loaded.train is not None
    assert (loaded.train.epochs, loaded.train.warmup) == (30, 3)
    assert isinstance(loaded.data, Cifar10)
    assert len(loaded.data.augment) == 3
