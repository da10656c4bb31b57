"""Every setting of every shipped spec, of stages, of layers and of recipes, is that of the table
with the publications it comes from."""

from __future__ import annotations

import pytest
from settings import pinned, settings_of
from zoo_specs import SPECS

from archspec.loading import load

PINNED = pinned()


def test_the_table_has_every_spec_and_no_other() -> None:
    assert sorted(PINNED) == list(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_settings_are_those_of_the_table(name: str) -> None:
    assert settings_of(load(name).tree) == PINNED[name]
