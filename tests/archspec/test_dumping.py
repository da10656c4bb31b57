"""Trees written as YAML read back the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archspec.cli.origins import origin
from archspec.diagnostics import SpecError
from archspec.dumping import dump, node_of
from archspec.finding import zoo
from archspec.loading import load
from archspec.spec import Coupling
from archspec.tree import read
from archspec.validation import validate

SPECIAL = (
    " -?:,[]{}#&*!|>'\"%@`\\\n\r\tab01.~=<é\x00\x1b\x7f\x80\x85\xa0\u200b\u2028\ufeff\U0001f600"
)
texts = st.text(max_size=12) | st.text(alphabet=SPECIAL, max_size=10)
numbers = st.integers(1 - 10**300, 10**300 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
keys = texts.filter(lambda key: key != "<<")
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(trees, st.booleans())
@example({"--- a": 1}, False)
@example({"null": "null", "true": "yes", "": "~", "1e3": "0x1", "-": "- a"}, True)
@example(
    ["", " a", "a ", "a: b", "a #b", "#", "a:", "|", "...", "---", "inf", ".inf", "\U0001f600"],
    True,
)
def test_what_is_dumped_reads_back(tree: Any, with_origins: bool) -> None:
    text = dump(node_of(tree), origin) if with_origins else dump(node_of(tree))
    back = read(text, "t")
    assert back.plain() == tree
    assert dump(back) == dump(node_of(tree))


SHIPPED = sorted(zoo().glob("*.yaml"))
COUPLINGS = sorted((zoo() / "couplings").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_spec_loads_again(path: Path, tmp_path: Path) -> None:
    loaded = load(path)
    for text in (dump(loaded.tree), dump(loaded.tree, origin)):
        again = tmp_path / "again.yaml"
        again.write_text(text, encoding="utf-8")
        assert load(again).spec == loaded.spec
    assert load(loaded.spec).spec == loaded.spec
    assert load(loaded.tree.plain()).spec == loaded.spec  # type: ignore[arg-type]


@pytest.mark.parametrize("path", COUPLINGS, ids=lambda path: path.stem)
def test_a_coupling_reads_back(path: Path) -> None:
    coupling = validate(Coupling, read(path.read_text(encoding="utf-8"), str(path)))
    text = dump(node_of(coupling.model_dump(mode="json", exclude_unset=True)))
    assert validate(Coupling, read(text, "t")) == coupling


def test_origins_name_the_file_of_each_value() -> None:
    lines = dump(load("momrev_vit_digits", ["train.epochs=3"]).tree, origin).splitlines()
    gamma, epochs, clip = (
        next(line for line in lines if f" {key}:" in line) for key in ("gamma", "epochs", "clip")
    )
    assert re.search(r"  # momrev_vit_digits\.yaml:\d+$", gamma)
    assert epochs.endswith("  # --set")
    assert re.search(r"  # rev_vit_digits\.yaml:\d+$", clip)


def test_origins_of_ones_own_files_are_paths_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    path = Path("deep") / "own.yaml"
    path.write_text("archspec: 1\nname: own\nextends: rev_vit_digits\n")
    lines = dump(load(path.absolute()).tree, origin).splitlines()
    assert "name: own  # deep/own.yaml:2" in lines


class _Number(int):
    def __repr__(self) -> str:
        return "a number"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_Number(3), "3"), (Fraction(1, 4), "0.25"), (-0.0, "-0.0"), (1e300, "1e+300"),
        (Path("a/b"), "a/b"), (MappingProxyType({"a": 1}), "a: 1"), ((1, 2), "- 1\n- 2"),
        ({1: 2}, '"1": 2'), ("True", '"True"'), ("no", "no"), ("1.0", '"1.0"'),
        ("x1 += F(x2)", "x1 += F(x2)"),
    ],
)  # fmt: skip
def test_python_values_are_written_as_yaml(value: object, text: str) -> None:
    assert dump(node_of(value)) == f"{text}\n"


NESTED: dict[str, Any] = {}
NESTED["a"] = {"b": NESTED}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": object()}, "found a value of type object"),
        ({"name": {"a"}}, "found a value of type set"),
        ({"name": b"a"}, "found a value of type bytes"),
        ({"name": 10**5000}, "found a value of type int"),
        ({"name": float("nan")}, "`.nan` is not a finite number"),
        ({"name": float("-inf")}, "`-.inf` is not a finite number"),
        ({"name": "\ud800"}, "the character '\\ud800' is not allowed"),
        ({"\ud800": 1}, "a key must be a plain name"),
        ({1: 2, "1": 3}, "two keys of a map are the same as text"),
        ({"<<": {}}, "merge keys are not used in specs"),
        (NESTED, "nested deeper than"),
        ({}, "are missing here"),
        ({"stages": {"trunk": None}}, "expected a map, found nothing"),
    ],
)  # fmt: skip
def test_a_dict_that_is_no_spec_is_refused(spec: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert message in str(caught.value)
