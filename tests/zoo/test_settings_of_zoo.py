"""Networks and recipes have the settings that were published: what no count of parameters shows."""

from __future__ import annotations

from fractions import Fraction

import pytest
from settings import pinned, settings_of
from zoo_specs import SPECS, full

from archspec.expressions import Expression, Number, fold
from archspec.layers.norms import BatchNorm, LayerNorm
from archspec.loading import load
from compiler.plan import Affine, StagePlan

PINNED = pinned()
TWINS = {
    "momrev_vit_s": "rev_vit_s",
    "momrev_vit_b": "rev_vit_b",
    "momrev_vit_l": "rev_vit_l",
    "momrev_vit_cifar10": "rev_vit_cifar10",
    "momrev_vit_digits": "rev_vit_digits",
    "momrev_mvit_b": "rev_mvit_b",
    "momrev_dit_digits": "rev_dit_digits",
    "momrev_dit_cifar10": "rev_dit_cifar10",
}
PROGRAM = ("streams", "constants.gamma", "update", "output")


@pytest.mark.parametrize("name", PINNED)
def test_settings_are_those_published(name: str) -> None:
    found = settings_of(load(name).tree)
    assert {path: found.get(path) for path in PINNED[name]} == PINNED[name]


def test_the_table_names_shipped_specs() -> None:
    assert set(PINNED) <= set(SPECS)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_its_program_alone(name: str) -> None:
    """Else a comparison would be of more than momentum."""
    ours, theirs = (settings_of(load(n).tree) for n in (name, TWINS[name]))
    differing = {p for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p)}
    assert {path for path in differing if not path.endswith(PROGRAM)} == set()


def test_norms_have_the_constants_of_the_published_code() -> None:
    """What the specs leave to the language: Rev-ViT's 1e-6; torchvision's 1e-5 and 0.1."""
    assert LayerNorm().eps == 1e-6
    assert (BatchNorm().eps, BatchNorm().momentum) == (1e-5, 0.1)


@pytest.mark.parametrize(
    ("name", "divisions"), [("momentum_vit_b_finetune", 12), ("momentum_resnet101_finetune", 6)]
)
def test_gamma_is_what_the_specs_say_where_networks_begin_to_be_reversed(
    name: str, divisions: int
) -> None:
    """0.7, and at most so many divisions by it between two kept layers; 0 at first."""
    stages = full(name).stages
    for stage in stages:
        assert [round(gamma_at(stage, at), 1) for at in ("0", "0.3", "1")] == [0, 0.7, 0.9]
        assert stage.invertible_from == 0.3
    assert max(stage.store_every * scaled(stage, "gamma") for stage in stages) == divisions


def gamma_at(stage: StagePlan, progress: str) -> float:
    gamma = stage.constants["gamma"]
    assert isinstance(gamma, Expression)
    value = fold(gamma, {"progress": Number(Fraction(progress))})
    assert isinstance(value, Number)
    return float(value.value)


def scaled(stage: StagePlan, name: str) -> int:
    """How many steps of a layer have this scale, by which their inverse divides."""
    return sum(isinstance(s, Affine) and name in s.scale.names for s in stage.steps)
