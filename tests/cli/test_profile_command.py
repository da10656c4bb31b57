"""archspec profile, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from archspec.cli import main

TINY = ("vit_digits", "rev_vit_digits", "--batch", "8", "--device", "cpu")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", *arguments])


def test_memory_and_time(tmp_path: Path) -> None:
    done = run(*TINY, "--repeats", "1", "--json", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "profile.json").read_text(encoding="utf-8"))
    rows = {(row["spec"], row["schedule"]): row for row in found["rows"]}
    assert ("vit_digits", "reversible") not in rows
    assert len(rows) == 7
    for row in rows.values():
        assert row["measured"] == row["predicted"]  # to the byte, on the CPU
        assert sum(row["measured"]["shares"].values()) == row["measured"]["peak"]
        assert row["times"]["forward"] > 0
        assert row["samples_per_second"] > 0
    stored, reversible = (rows["rev_vit_digits", s] for s in ("stored", "reversible"))
    assert reversible["per_sample"] < stored["per_sample"] / 4
    assert stored["replay"] == 0
    page = (tmp_path / "out" / "profile.md").read_text(encoding="utf-8")
    for title in ("memory_against_batch", "time_against_memory"):
        assert f"({title}.svg)" in page
        assert (tmp_path / "out" / f"{title}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_depths_and_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """Predicted: the streams of more layers take no more, their weights do."""
    depths = ("--depths", "2,4,8", "--strategies", "reversible")
    arguments = ("momrev_vit_digits", "--batch", "32", "--device", "cuda", *depths)
    done = run(*arguments, "--precision", "bf16", "--json", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    if found["is_there"]:
        pytest.skip("there is a GPU")
    assert [row["depth"] for row in found["rows"]] == [2, 4, 8]
    slopes = [row["per_sample"] for row in found["rows"]]
    assert max(slopes) < 1.2 * min(slopes)
    assert all(row["measured"] is None and row["times"] is None for row in found["rows"])
    assert (tmp_path / "memory_against_depth.svg").is_file()


def test_what_fits() -> None:
    both = ("--strategies", "store,reversible")
    asked = ("rev_vit_digits", "--device", "cuda", "--json", "--repeats", "0")
    done = run(*asked, *both, "--fit", "1GiB")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["budget"] == 2**30 - 768 * 2**20
    largest = {row["schedule"]: row["largest"] for row in found["rows"]}
    assert largest["reversible"] > 2 * largest["stored"] > 0
    batch = ("--batch", str(largest["reversible"]))
    again = run(*asked, *batch, "--strategies", "reversible")
    (peak,) = (
        row["predicted"]["peak"]
        for row in json.loads(again.stdout)["rows"]
        if row["schedule"] == "reversible"
    )
    assert 0.99 * found["budget"] < peak <= found["budget"]


def test_tables_are_whole_where_there_is_no_terminal() -> None:
    """In a pipe, a log, or CI."""
    few = ("--repeats", "0", "--strategies", "store,reversible")
    done = run("rev_vit_digits", "--device", "cuda", "--fit", "1GiB", *few)
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    header = next(line for line in done.stdout.splitlines() if line.startswith("spec"))
    assert header.split()[:5] == ["spec", "layers", "activations", "batch", "peak"]
    assert "The largest batch within 1 GiB, of which 768 MiB are left to CUDA" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rev_vit_digits", "--fit", "much"), "`much` is no size of memory: write 6GiB"),
        (("rev_vit_digits", "--fit", "0GiB"), "is no size of memory"),
        (("rev_vit_digits", "--device", "cuda", "--fit", "1MiB"), "driver alone takes"),
        (("rev_vit_digits", "--depths", "4,x"), "write numbers as 12,24,48"),
        (("rev_vit_digits", "--depths", "0"), "write numbers as 12,24,48"),
        (("rev_mvit_digits", "--depths", "4"), "--depths is for networks of one stage"),
        (("rev_vit_digits", "--strategies", "stor"), "no strategy `stor`; did you mean `store`"),
        (("vit_digits", "--strategies", "reversible"), "error[E301]"),
        (("rev_vit_digits", "--device", "gpu"), "there is no kind of device `gpu`"),
        (("rev_vit_digit",), "rev_vit_digits"),
        (("rev_vit_digits", "--batch", "0"), "0 is not in the range"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_folder_that_cannot_be_is_told_before_the_work(invoked, here: Path) -> None:
    Path("afile").write_text("mine")
    done = invoked("profile", "rev_vit_digits", "--repeats", "0", "--output", "afile/x")
    assert done.returncode == 2
    assert "cannot write in" in done.stderr
    assert "predicting" not in done.stderr


def test_a_spec_without_an_inverse_is_left_out(invoked, here: Path) -> None:
    only = ("--strategies", "reversible", "--repeats", "0")
    done = invoked("profile", "rev_vit_digits", "vit_digits", *only)
    assert done.returncode == 0, done.stderr
    assert "vit_digits has no inverse, and is left out" in done.stderr
    assert invoked("profile", "vit_digits", *only).returncode == 2


def test_a_budget_has_its_row(invoked, here: Path) -> None:
    budget = ("--set", "stages.trunk.backward={budget: 10MiB}")
    only = ("--strategies", "reversible", "--repeats", "0", "--device", "cpu")
    done = invoked("profile", "rev_vit_digits", *budget, *only, "--json")
    assert done.returncode == 0, done.stderr
    plain, planned = json.loads(done.stdout)["rows"]
    assert planned["schedule"] == "by its budget"
    assert plain["predicted"]["peak"] < planned["predicted"]["peak"] <= 10 * 2**20
    assert planned["measured"]["peak"] == planned["predicted"]["peak"]


def test_plots_of_an_earlier_profile_do_not_stay(invoked, here: Path) -> None:
    arguments = ("profile", "vit_digits", "--strategies", "store", "--output", "out")
    assert invoked(*arguments, "--repeats", "1").returncode == 0
    assert list(Path("out").glob("time*.svg"))
    assert invoked(*arguments, "--repeats", "0").returncode == 0
    assert not list(Path("out").glob("time*.svg"))
