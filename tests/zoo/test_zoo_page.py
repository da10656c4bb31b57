"""docs/zoo.md is what the specs say."""

from __future__ import annotations

from pathlib import Path

from proofs import PROOFS
from zoo_page import page

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "zoo.md"


def test_the_page_is_up_to_date() -> None:
    message = "run: python tests/shared/zoo_page.py > docs/zoo.md"
    assert PAGE.read_text(encoding="utf-8") == page(), message


def test_every_proof_is_a_test() -> None:
    for proof in PROOFS:
        assert (TESTS / proof.test).is_file(), proof.test
