"""What users read for each kind of mistake, word for word: `golden_errors.txt`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import archspec
import compiler
from archspec.diagnostics import MAX_SHOWN, Diagnostic, Source, Span, SpecError, nearest

Explain = Callable[..., str]

HEAD, *BLOCKS = (
    Path(__file__)
    .with_suffix("")
    .with_name("golden_errors.txt")
    .read_text(encoding="utf-8")
    .split("\n=== ")
)
SMALL = HEAD.partition("\n\n")[2]
CASES = {title: case for title, _, case in (block.partition("\n") for block in BLOCKS)}


def changed(edit: str) -> str:
    """The small spec after the changes that lines behind `-` and `+` say."""
    text = SMALL
    for hunk in re.finditer(r"((?:^-.*\n)+)((?:^\+.*\n)*)", f"{edit}\n", re.MULTILINE):
        old, new = (re.sub("^.", "", part, flags=re.MULTILINE) for part in hunk.groups())
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("title", CASES)
def test_a_mistake_is_told_word_for_word(title: str, explain: Explain) -> None:
    edit, _, expected = CASES[title].partition("\n\n")
    settings = re.findall("^--set (.*)", edit, re.MULTILINE)
    Path("circle.yaml").write_text("archspec: 1\nname: circle\nextends: spec\n", encoding="utf-8")
    said = explain(SMALL if settings else changed(edit), *settings)
    if "error[E106]" in said or "error[E501]" in said:
        said = re.sub("names here: .*", "names here: …", said)
    assert said == expected.rstrip("\n")


def test_the_small_spec_is_right(explain: Explain) -> None:
    assert explain(SMALL) == ""


def test_every_code_has_its_case() -> None:
    folders = [Path(str(package.__file__)).parent for package in (archspec, compiler)]
    sources = [path.read_text(encoding="utf-8") for f in folders for path in f.glob("*.py")]
    codes = {code for source in sources for code in re.findall(r'"(E[1-5]\d\d)"', source)}
    shown = {code for case in CASES.values() for code in re.findall(r"error\[(E\d+)\]", case)}
    assert shown == codes


def test_all_mistakes_are_told_in_the_order_of_the_file(explain: Explain) -> None:
    text = SMALL.replace("patch: 4", "patch: four").replace("depth: 3", "deph: 3")
    text = text.replace("mlp: 2", "mpl: 2").replace("[x: ", "[").replace("classify: 10", "guess: 1")
    said = re.findall(r"^spec\.yaml:(\d+):\d+: error\[(E\d+)\]", explain(text), re.MULTILINE)
    assert said == [("6", "E105"), ("9", "E103"), ("13", "E106"), ("20", "E106")]
    text = SMALL.replace("patch: 4", "patch: 3").replace("gamma*x + F", "gama*x + f")
    text = text.replace("[layer_norm, linear", "[conv, linear").replace("G(x)", "G(x, y)")
    said = re.findall(r"^spec\.yaml:(\d+):\d+: error\[(E\d+)\]", explain(text), re.MULTILINE)
    assert said == [("6", "E401"), ("12", "E203"), ("14", "E203"), ("16", "E202"), ("16", "E202")]


def test_mistakes_of_every_stage_are_told(explain: Explain) -> None:
    stage = SMALL[SMALL.index("  trunk:") : SMALL.index("head:")]
    text = SMALL.replace(stage, stage + stage.replace("trunk", "other").replace("G(x)", "G(y)"))
    assert "spec.yaml:28:14: error[E301] G reads y" in explain(text)
    text = text.replace("mlp: 2]", "attention: 5]", 1)
    said = re.findall(r"error\[(E\d+)\]", explain(text))
    assert said == ["E401", "E301"]


# The parts of an error ---------------------------------------------------------------------------


def test_the_nearest_name_is_offered_and_all_are_listed() -> None:
    assert nearest("gama", ["gamma", "h"]) == "did you mean `gamma`?  names here: gamma, h"
    assert nearest("zzz", ["gamma", "h"]) == "names here: gamma, h"
    assert nearest("x", []) == ""
    assert nearest("x", map(str, range(50))).endswith(", …")
    assert nearest(5, ["5"]) == "did you mean `5`?  names here: 5"


def test_mistakes_are_sorted_told_once_and_told_in_part() -> None:
    source = Source("s", "\n" * 200)
    told = [Diagnostic("E1", f"m{i}", Span(source, i, 0, 1)) for i in range(199, -1, -1)]
    error = SpecError([*told, *told])
    assert [d.message for d in error.diagnostics] == [f"m{i}" for i in range(200)]
    assert str(error).count("error[") == MAX_SHOWN
    assert str(error).endswith(f"… and {200 - MAX_SHOWN} more")


def test_an_error_reaches_another_process_whole() -> None:
    error = SpecError([Diagnostic("E1", "m", Source("s", "ab").at(1), "help")])
    back = pickle.loads(pickle.dumps(error))
    assert back.diagnostics == error.diagnostics
    assert str(back) == str(error)


def test_a_place_past_the_end_of_its_line_is_shown() -> None:
    source = Source("s", "ab")
    assert str(Diagnostic("E1", "m", Span(source, 0, 2, 3))).endswith("1 | ab\n      |   ^")
    assert str(Diagnostic("E1", "m", Span(source, 7, 2, 3))) == "s:8:3: error[E1] m"
    assert str(Diagnostic("E1", "m")) == "error[E1] m"
