"""YAML into trees: what values mean, where they stand, and every way to write them wrong."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archspec.diagnostics import SpecError
from archspec.loading import read_file
from archspec.tree import MAX_CHARACTERS, MAX_ERRORS, MAX_NESTING, MAX_NODES, Node, read


def value(text: str) -> object:
    """What a text means as a value."""
    plain = read(f"k: {text}", "t").plain()
    assert isinstance(plain, dict)
    return plain["k"]


def refused(text: str) -> SpecError:
    """The error that a text meets."""
    with pytest.raises(SpecError) as caught:
        read(text, "t")
    for diagnostic in caught.value.diagnostics:
        assert diagnostic.code in ("E101", "E102")
        assert diagnostic.span is not None
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1.0e+3", 1000.0), ("1E3", 1000.0), (".5", 0.5), ("1.", 1.0),
        ("-0.5", -0.5), ("0", 0), ("-12", -12), ("+3", 3), ("017", 17), ("9" * 300, int("9" * 300)),
        ("true", True), ("False", False), ("TRUE", True), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_plain_scalars_are_those_of_yaml_1_2(text: str, expected: object) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "no", "on", "yes", "off", "y", "tRUE", "0o7", "0x1F", "0b1", "1_000", "1:30", "2020-01-01",
        "=", "1e", "e5", ".", "1.2.3", "nan", "inf", "None", "x1 += F(x2)", "a, b = b, a",
    ],
)  # fmt: skip
def test_what_yaml_1_1_or_python_would_make_of_a_text_stays_a_text(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize("text", ["1", "1.5", "true", "null", "~", ""])
def test_quoted_scalars_are_texts(text: str) -> None:
    assert value(f"'{text}'") == text
    assert value(f'"{text}"') == text


def test_block_scalars_are_texts() -> None:
    assert read("k: |\n  12\n", "t").plain() == {"k": "12\n"}
    assert read("k: >-\n  a\n  b\n", "t").plain() == {"k": "a b"}


def test_keys_are_texts_whatever_they_look_like() -> None:
    assert read("1: a\ntrue: b\n~: c\n'x y': d\n", "t").plain() == {
        "1": "a",
        "true": "b",
        "~": "c",
        "x y": "d",
    }


def test_aliases_stand_for_their_anchors() -> None:
    tree = read("a: &a [1, 2]\nb: *a\n", "t")
    assert tree.plain() == {"a": [1, 2], "b": [1, 2]}
    assert str(tree.map["b"].span) == "t:1:4"


TREE = """\
# a comment
name: small   # another
stages:
  trunk: {depth: 3, 'streams': {x: "input"}}
  other:
    update:
    - x += F(y)
    -  - 1
       - 2.5
"""


def written(node: Node) -> str:
    """The characters that a span covers."""
    return node.span.source.line(node.span.line)[node.span.column : node.span.end_column]


def test_spans_cover_what_is_written() -> None:
    tree = read(TREE, "t")
    found = {".".join(map(str, path)): (written(n), str(n.span)) for path, n in tree.walk()}
    assert found == {
        "name": ("small", "t:2:7"),
        "stages.trunk.depth": ("3", "t:4:18"),
        "stages.trunk.streams.x": ('"input"', "t:4:36"),
        "stages.other.update.0": ("x += F(y)", "t:7:7"),
        "stages.other.update.1.0": ("1", "t:8:10"),
        "stages.other.update.1.1": ("2.5", "t:9:10"),
    }
    trunk = tree.find(("stages", "trunk"))
    assert written(trunk) == "{depth: 3, 'streams': {x: \"input\"}}"
    assert [str(span) for span in trunk.keys.values()] == ["t:4:11", "t:4:21"]
    assert str(tree.where(("stages", "other", "update"))) == "t:6:5"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "t:3:1", "the key `a` stands twice"),
        ("{a: 1, 'a': 2}", "t:1:8", "the key `a` stands twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "t:3:3", "merge keys are not used in specs"),
        ("a: !foo 1", "t:1:4", "the tag `!foo` is not used in specs"),
        ("a: !foo {b: 1}", "t:1:4", "the tag `!foo` is not used in specs"),
        ("a: !!str 5", "t:1:4", "the tag `!!str` is not used in specs"),
        ("a: !!python/object/apply:os.system [ls]", "t:1:4", "the tag `!!python"),
        ("a: ! 5", "t:1:4", "the tag `!` is not used in specs"),
        ("!x k: 1", "t:1:1", "the tag `!x` is not used in specs"),
        ("a: &a [1, *a]", "t:1:4", "this alias contains itself"),
        ("a: &a {b: {c: *a}}", "t:1:4", "this alias contains itself"),
        ("a: *b", "t:1:4", "found undefined alias 'b'"),
        ("a:\n\tb: 1", "t:2:1", "found character '\\t' that cannot start any token"),
        ("a: .nan", "t:1:4", "`.nan` is not a finite number"),
        ("a: [1, -.inf]", "t:1:8", "`-.inf` is not a finite number"),
        ("a: 1e999", "t:1:4", "`1e999` is not a finite number"),
        ("a: " + "9" * 5000, "t:1:4", "is not a finite number"),
        ("a: b: c", "t:1:5", "mapping values are not allowed here"),
        ("a: 1\n  b: 2", "t:2:4", "mapping values are not allowed here"),
        ("a: [1, 2", "t:1:9", "expected ',' or ']'"),
        ('a: "b', "t:1:4", "this quote is never closed"),
        ("a: 1\n---\nb: 2\n", "t:2:1", "found another document"),
        ("? [a]\n: 1\n", "t:1:3", "a key must be a plain name"),
        ("? {a: b}\n: 1\n", "t:1:3", "a key must be a plain name"),
        ("a: 1\nb: x\x07y\n", "t:2:5", "the character '\\x07' is not allowed in YAML"),
        ("a: \x00", "t:1:4", "the character '\\x00' is not allowed in YAML"),
        ("a: b\x1b[31m", "t:1:5", "the character '\\x1b' is not allowed in YAML"),
        ('a: "\\ud800"', "t:1:4", "the character '\\ud800' is not allowed in YAML"),
        ("a: \ud800", "t:1:4", "the character '\\ud800' is not allowed in YAML"),
        ("%YAML 2.0\n---\na: 1", "t:1:1", "found incompatible YAML document"),
        ("", "t:1:1", "t is empty"),
        ("# only a comment\n", "t:1:1", "t is empty"),
        ("a: @b", "t:1:4", "found character '@' that cannot start any token"),
        ("a: {b", "t:1:6", "expected ',' or '}'"),
        ("[" * 50_000, "t:1:42", f"nested deeper than {MAX_NESTING} levels"),
        ("- " * 40_000, "t:1:83", f"nested deeper than {MAX_NESTING} levels"),
        ("\n".join(" " * i + "a:" for i in range(400)), "t:41:41", "nested deeper than"),
        ("k" * 2000 + ": 1", "t:1:2001", "mapping values are not allowed here"),
        ("x" * (MAX_CHARACTERS + 1), "t:1:1", f"longer than {MAX_CHARACTERS} characters"),
    ],
)  # fmt: skip
def test_wrong_yaml_is_refused_at_its_place(text: str, place: str, message: str) -> None:
    error = refused(text)
    assert str(error.diagnostics[0].span) == place
    assert message in error.diagnostics[0].message


def test_all_mistakes_of_a_file_are_told() -> None:
    codes = [d.code for d in refused("a: .nan\na: 1\nb: .inf\nb: 2\n").diagnostics]
    assert codes == ["E101", "E102", "E101", "E102"]


def test_an_alias_bomb_is_refused_before_it_is_unrolled() -> None:
    letters = "abcdefghijklmnop"
    lines = [f"{letters[0]}: &{letters[0]} [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise(letters)
    ]
    error = refused("\n".join(lines))
    assert f"more than {MAX_NODES} values" in error.diagnostics[0].message


def test_a_file_of_many_values_is_refused_before_all_are_read() -> None:
    error = refused("[" + "1," * 40_000 + "]")
    assert f"more than {MAX_NODES} values" in error.diagnostics[0].message
    assert error.diagnostics[0].span
    assert error.diagnostics[0].span.column < 60_000


def test_a_chain_of_aliases_is_refused_before_it_is_too_deep_for_python() -> None:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))]
    assert f"nested deeper than {MAX_NESTING} levels" in str(refused("\n".join(lines)))


def test_a_file_of_mistakes_is_told_in_part() -> None:
    error = refused("{" + "a," * 5_000 + "}")
    assert len(error.diagnostics) == MAX_ERRORS
    assert str(error).endswith("… and 50 more")
    assert len(str(error)) < 50_000


def test_control_characters_in_values_do_not_reach_the_terminal() -> None:
    error = refused('"\\x1b[31m": 1\n"\\x1b[31m": 2\n')
    assert "\x1b" not in str(error)
    assert "`\\x1b[31m` stands twice" in str(error)


def test_long_lines_are_shown_in_part() -> None:
    shown = str(refused("k: [" + "1, " * 500 + "@]")).splitlines()
    line, carets = shown[1], shown[2]
    assert len(line) < 200
    assert line[carets.index("^")] == "@"


def test_carets_stand_under_tabs() -> None:
    shown = str(refused('{a: "\t", a: 1}')).splitlines()
    assert shown[1:3] == ['    1 | {a: "\t", a: 1}', "      |      \t   ^"]


# Files -------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: .inf\r\n")
    with pytest.raises(SpecError) as caught:
        read_file(path)
    assert str(caught.value.diagnostics[0].span) == f"{path}:2:4"


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"a: 1\nb: \xff\n", "2:4"),
        ("a: é".encode("latin-1"), "1:4"),
        ("a: 1".encode("utf-16"), "1:1"),
        (b"a: 1\nb: \xc3", "2:4"),
        (b"a: \xed\xa0\x80", "1:4"),
    ],
)
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, data: bytes, place: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(data)
    with pytest.raises(SpecError) as caught:
        read_file(path)
    assert [str(d.span) for d in caught.value.diagnostics] == [f"{path}:{place}"]
    assert "not UTF-8" in str(caught.value)


def test_a_file_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"#" * (4 * MAX_CHARACTERS + 1))
    with pytest.raises(SpecError, match="too long for a spec"):
        read_file(path)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "x" * 300])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"E501.* cannot read"):
        read_file(tmp_path / name)


# Anything ----------------------------------------------------------------------------------------

YAMLISH = st.text(
    alphabet=" \n\t-?:,[]{}#&*!|>'\"%@`\\ab1.~<=é\x85\u2028\ufeff\x00\x7f", max_size=40
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(YAMLISH | st.text(max_size=30))
def test_any_text_is_read_or_refused_at_a_place(text: str) -> None:
    try:
        tree = read(text, "t")
    except SpecError:
        message = str(refused(text))
        assert message.encode().startswith(b"t:")
    else:
        assert all(tree.find(path) is node for path, node in tree.walk())
