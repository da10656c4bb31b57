"""Recipes: what a spec that names one trains with, and which of its own settings stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archspec.augmentation import CutMix, HorizontalFlip, RandomCrop
from archspec.diagnostics import SpecError
from archspec.finding import zoo
from archspec.loading import Loaded, load, read_file
from archspec.spec import Recipe
from archspec.training import Cosine, Steps
from archspec.validation import validate

RECIPES = sorted((zoo() / "recipes").glob("*.yaml"))


def spec(**keys: Any) -> dict[str, Any]:
    return {
        "archspec": 1,
        "name": "small",
        "summary": "For tests of recipes",
        "input": {"image": [3, 32, 32]},
        "stem": [{"patch_embed": {"patch": 8, "width": 8}}],
        "stages": {
            "trunk": {
                "depth": 1,
                "coupling": "additive",
                "functions": {"F": ["layer_norm"], "G": ["layer_norm"]},
            }
        },
        "head": ["layer_norm", {"pool": "mean"}, {"linear": "classes"}],
        "task": {"classify": 10},
        "data": "cifar10",
        **keys,
    }


def augmentation(loaded: Loaded) -> list[str]:
    augment = getattr(loaded.spec.data, "augment", ())
    return [each.kind for each in augment]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_train_a_spec(path: Path) -> None:
    recipe = validate(Recipe, read_file(path))
    assert recipe.recipe == path.stem
    loaded = load(spec(recipe=path.stem))
    assert loaded.spec.train == recipe.train
    assert augmentation(loaded) == [each.kind for each in recipe.augment]
    assert loaded.spec.recipe is None  # it is written out, and changes no more


def test_what_the_spec_writes_stands() -> None:
    data = {"cifar10": {"augment": ["horizontal_flip"], "workers": 2}}
    loaded = load(spec(recipe="revnet_cifar", train={"epochs": 3}, data=data), ["train.batch=7"])
    train = loaded.spec.train
    assert train is not None
    assert (train.epochs, train.batch, train.schedule) == (3, 7, Steps(at=(80, 120)))
    assert augmentation(loaded) == ["horizontal_flip"]


@pytest.mark.parametrize("data", ["cifar10", {"cifar10": None}, {"cifar10": {"workers": 2}}])
def test_its_augmentation_joins_any_way_to_write_data(data: Any) -> None:
    loaded = load(spec(recipe="revnet_cifar", data=data))
    assert loaded.spec.data is not None
    assert loaded.spec.data.augment == (RandomCrop(padding=4), HorizontalFlip())  # type: ignore[union-attr]


def test_another_recipe_takes_the_place_of_what_was_inherited(tmp_path: Path) -> None:
    """Else settings of the parent's would be mixed into it."""
    child = tmp_path / "child.yaml"
    text = "archspec: 1\nname: child\nsummary: x\nextends: revnet38_cifar10\n"
    child.write_text(text + "recipe: short_cifar\ntrain: {epochs: 5}\n", encoding="utf-8")
    loaded = load(child)
    assert loaded.spec.train is not None
    assert (loaded.spec.train.epochs, loaded.spec.train.optimizer.kind) == (5, "adamw")
    assert CutMix() in loaded.spec.data.augment  # type: ignore[union-attr]
    by_setting = load("revnet38_cifar10", ["train.epochs=5", "recipe=short_cifar"])
    assert by_setting.spec.train == loaded.spec.train


NAMED = {
    "minrev_cifar": ["rev_vit_cifar10", "vit_cifar10", "bdia_vit_cifar10", "momrev_vit_cifar10",
                     "momrev_vit_cifar10_learned"],
    "rev_vit_b": ["rev_vit_b", "vit_b", "momrev_vit_b", "rev_vit_l", "vit_l", "momrev_vit_l"],
    "rev_vit_s": ["rev_vit_s", "vit_s", "momrev_vit_s"],
    "rev_mvit_b": ["rev_mvit_b", "mvit_b", "momrev_mvit_b"],
    "rev_mvit_b_video": ["rev_mvit_b_video"],
    "revnet_cifar": ["revnet38_cifar10", "revnet164_cifar10", "hamiltonian218_cifar10",
                     "midpoint62_cifar10", "leapfrog26_cifar10"],
    "revnet_imagenet": ["revnet104"],
    "resnet_imagenet": ["resnet18", "resnet152", "momentum_resnet101"],
    "resnet_cifar": ["resnet32_cifar10", "momentum_resnet32_cifar10"],
}  # fmt: skip


@pytest.mark.parametrize("recipe", NAMED)
def test_networks_that_are_compared_are_trained_by_one_recipe(recipe: str) -> None:
    content = validate(Recipe, read_file(zoo() / "recipes" / f"{recipe}.yaml"))
    for name in NAMED[recipe]:
        loaded = load(name)
        assert loaded.spec.train == content.train, name
        assert loaded.spec.data.augment == content.augment, name  # type: ignore[union-attr]


def test_another_schedule_takes_the_place_of_one() -> None:
    train = {"schedule": {"cosine": {}}, "final_learning_rate": 1e-4}
    loaded = load(spec(recipe="revnet_cifar", train=train))
    assert loaded.spec.train is not None
    assert loaded.spec.train.schedule == Cosine()


def test_a_recipe_beside_the_spec_comes_first(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "short_cifar.yaml"
    train = "train: {epochs: 1, batch: 2, learning_rate: 3}"
    mine.write_text(f"archspec: 1\nrecipe: short_cifar\nsummary: x\n{train}\n", encoding="utf-8")
    child = tmp_path / "child.yaml"
    text = "archspec: 1\nname: child\nsummary: x\nextends: rev_vit_cifar10\nrecipe: short_cifar\n"
    child.write_text(text, encoding="utf-8")
    loaded = load(child)
    assert loaded.spec.train is not None
    assert loaded.spec.train.batch == 2


SPARSE = {
    "input": {"features": [4]},
    "stem": [],
    "head": [{"linear": "codes"}],
    "task": {"sparse_code": 8},
    "data": "sparse_codes",
}


def test_data_that_takes_no_augmentation_has_a_way_out(tmp_path: Path) -> None:
    """That of the help: a recipe without it, or none and all of `train`."""
    text = refusal(spec(recipe="revnet_cifar", **SPARSE))
    assert "the recipe revnet_cifar has `augment`, but sparse_codes data takes none" in text
    train = {"epochs": 1, "batch": 2, "learning_rate": 3}
    assert load(spec(recipe=None, train=train, **SPARSE)).spec.train is not None
    (tmp_path / "recipes").mkdir()
    recipe = f"archspec: 1\nrecipe: plain\nsummary: x\naugment: []\ntrain: {train}\n"
    (tmp_path / "recipes" / "plain.yaml").write_text(recipe.replace("'", ""), encoding="utf-8")
    child = tmp_path / "child.yaml"
    text = "archspec: 1\nname: child\nsummary: x\nextends: lista\nrecipe: plain\n"
    child.write_text(text, encoding="utf-8")
    assert load(child).spec.train == load(spec(train=train, **SPARSE)).spec.train


def refusal(content: dict[str, Any], *settings: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(content, settings)
    return str(caught.value)


def test_mistakes_are_told_where_they_stand(tmp_path: Path) -> None:
    text = refusal(spec(recipe="short_cifr"))
    assert "error[E501] there is no recipe `short_cifr`" in text
    assert "did you mean `short_cifar`" in text
    text = refusal(spec(recipe="short_cifar"), "train.epoch=4")
    assert "unknown key `epoch`" in text
    assert "error[E105]" in refusal(spec(recipe=["short_cifar"]))


def test_a_broken_recipe_is_told_in_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(
        "archspec: 1\nrecipe: mine\nsummary: x\ntrain: {epochs: 1, batch: 2, learningrate: 3}\n",
        encoding="utf-8",
    )
    text = "archspec: 1\nname: c\nsummary: x\nextends: rev_vit_cifar10\nrecipe: mine\n"
    Path("c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"recipes.mine\.yaml:4:\d+: error\[E103\] unknown key"):
        load("c.yaml")
