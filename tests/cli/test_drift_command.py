"""archspec drift."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest


def test_it_prints_a_table_and_writes_a_plot(archspec, tmp_path) -> None:
    done = archspec("drift", "momrev_vit_digits", "--stage", "trunk")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trunk: relative error of the streams")
    assert "predicted, with gain" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "6"]
    assert "written: momrev_vit_digits_drift.png" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["momrev_vit_digits_drift.png"]
    assert (tmp_path / "momrev_vit_digits_drift.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_and_every_stage_has_a_panel(archspec, tmp_path) -> None:
    done = archspec("drift", "revnet_digits", "--json", "--output", "both.svg", "--seed", "3")
    assert done.returncode == 0, done.stderr
    fine, coarse = json.loads(done.stdout)["stages"]
    assert (fine["stage"], coarse["stage"]) == ("fine", "coarse")
    for curve in ("linear", "predicted", "float32", "bfloat16", "predicted_bfloat16"):
        assert len(fine[curve]) == fine["depth"] == 3
    assert 0 < fine["float32"][-1] < 1e-4 < fine["bfloat16"][-1]
    assert "fine: relative error" in done.stderr
    text = " ".join(filter(None, ElementTree.parse(tmp_path / "both.svg").getroot().itertext()))
    assert "fine" in text
    once = (tmp_path / "both.svg").read_bytes()
    archspec("drift", "revnet_digits", "--output", "both.svg", "--seed", "3")
    assert (tmp_path / "both.svg").read_bytes() == once


def test_what_is_no_number_is_null(archspec) -> None:
    update = "stages.trunk.update=['x1 = 1000*x1 + F(x2)', 'x2 = 1000*x2 + G(x1)']"
    arguments = ("--set", update, "--set", "stages.trunk.depth=20")
    coupling = (
        "--set",
        "stages.trunk.coupling=",
        "--set",
        "stages.trunk.streams={x1: input, x2: input}",
    )
    output = ("--set", "stages.trunk.output=concat(x1, x2)")
    done = archspec("drift", "rev_vit_digits", "--json", *arguments, *coupling, *output)
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert stage["predicted"][-1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit_digits",), "no stage of vit_digits is reversible (`backward: reversible`)"),
        (("vit_digits", "--stage", "trunk"), "stage `trunk` of vit_digits is not reversible"),
        (("revnet_digits", "--stage", "corse"), "has no stage `corse`; did you mean `coarse`?"),
        (("rev_vit_digits", "--output", "plot.pdf"), "a plot is a .png or a .svg file"),
        (("rev_vit_digits", "--output", "no/plot.png"), "cannot write no/plot.png: there is no"),
        (("rev_vit_digits", "--output", "/proc/plot.png"), "cannot write /proc/plot.png: "),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(archspec, tmp_path, arguments, message) -> None:
    done = archspec("drift", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_spec_is_told_with_its_place(archspec) -> None:
    done = archspec("drift", "momrev_vit_digits", "--set", "stages.trunk.constants.gama=0.9")
    assert done.returncode == 2
    assert "error[E103] unknown key `gama`" in done.stderr
