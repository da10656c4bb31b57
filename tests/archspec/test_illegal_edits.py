"""Shipped specs after random edits: they resolve, or every mistake is told at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import check_error
from spec_edits import edited, scribbled

from archspec.diagnostics import SpecError
from archspec.finding import zoo
from archspec.loading import load, read_file
from compiler.resolve import resolve

FILES = sorted(zoo().glob("*.yaml"))
COUPLINGS = sorted((zoo() / "couplings").glob("*.yaml"))
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def attempt(what: Any, given_settings: tuple[str, ...] = ()) -> None:
    """Load and resolve a spec; what is refused must be refused well."""
    try:
        plan = resolve(load(what, given_settings))
    except SpecError as error:
        check_error(error)
    else:
        assert plan.stages


def plain(path: Path, *, inherited: bool = False) -> dict[str, Any]:
    """The tree of a file by itself, or with all that it inherits."""
    tree = (load(path).tree if inherited else read_file(path)).plain()
    assert isinstance(tree, dict)
    return tree


def with_program(path: Path) -> dict[str, Any]:
    """A small spec with the program of a coupling written out."""
    coupling = plain(path)
    program = ("streams", "constants", "update", "output")
    trunk = {key: coupling[key] for key in program if key in coupling}
    trunk |= {"depth": 3, "backward": "store"}
    trunk["functions"] = {name: ["tanh"] for name in coupling["functions"]}
    return {**plain(FILES[0], inherited=True), "stages": {"trunk": trunk}}


TREES = [
    *(plain(path) for path in FILES),
    *(plain(path, inherited=True) for path in FILES),
    *(with_program(path) for path in COUPLINGS),
]


@SETTINGS
@given(st.integers(0, len(TREES) - 1).flatmap(lambda i: edited(TREES[i])))
def test_edited_trees(tree: dict[str, Any]) -> None:
    attempt(tree)


@pytest.mark.parametrize("part", ["update", "constants", "functions", "streams", "output"])
@settings(SETTINGS, max_examples=60)
@given(st.data())
def test_edited_programs(part: str, data: st.DataObject) -> None:
    tree = with_program(data.draw(st.sampled_from(COUPLINGS)))
    trunk = tree["stages"]["trunk"]
    trunk |= data.draw(edited({part: trunk.get(part, {})}))
    attempt(tree)


TEXTS = [path.read_text(encoding="utf-8") for path in FILES]


@settings(SETTINGS, max_examples=250)
@given(st.integers(0, len(TEXTS) - 1).flatmap(lambda i: scribbled(TEXTS[i])))
def test_scribbled_files(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "scribbled.yaml"
    path.write_bytes(text.encode())
    attempt(path)


STEPS = ["stages", "trunk", "train", "data", "0", "1", "F", "functions", "update", "epochs", "stem"]
paths = st.lists(st.sampled_from(STEPS), min_size=1, max_size=4).map(".".join)
values = st.text(max_size=15) | st.sampled_from(["{}", "[]", "null", "5", "x", "[1, 2]", "{a: 1}"])


@SETTINGS
@given(st.lists(st.builds("{}={}".format, paths, values), min_size=1, max_size=3))
def test_random_settings(given_settings: list[str]) -> None:
    attempt("momrev_vit_digits", tuple(given_settings))
