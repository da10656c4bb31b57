"""Networks and recipes have the settings that were published: what no count of parameters shows."""

from __future__ import annotations

import pytest
from settings import pinned, settings_of
from zoo_specs import SPECS

from archspec.layers.norms import BatchNorm, LayerNorm
from archspec.loading import load

PINNED = pinned()
TWINS = {
    "momrev_vit_s": "rev_vit_s",
    "momrev_vit_b": "rev_vit_b",
    "momrev_vit_l": "rev_vit_l",
    "momrev_vit_cifar10": "rev_vit_cifar10",
    "momrev_vit_digits": "rev_vit_digits",
    "momrev_mvit_b": "rev_mvit_b",
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
