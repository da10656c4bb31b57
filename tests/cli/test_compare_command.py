"""archspec compare: a study of three specs with two seeds, from the command to its report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SPECS = ("vit_digits", "rev_vit_digits", "momrev_vit_digits")
STUDY = f"""archspec: 1
study: digits
summary: Three <networks> & two seeds
seeds: 2
baseline: rev_vit_digits
targets: [0.2, 0.99]
set: [train.epochs=1]
specs: {{{", ".join(f"{name}: {name}" for name in SPECS)}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    import sys

    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "archspec", "compare", "study.yaml", "--output", "out"]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    return compare(folder, "--json")


def test_every_run_is_there(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["label"] for row in found["rows"]] == list(SPECS)
    assert [len(row["runs"]) for row in found["rows"]] == [2, 2, 2]
    for row in found["rows"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        for run in row["runs"]:
            path = folder / "out" / "runs" / row["label"] / f"seed{run['seed']}" / "result.json"
            assert json.loads(path.read_text())["test_accuracy"] == run["test"]
        assert row["difference"] is None or row["difference"]["count"] == 2
        assert row["costs"]["training"]["peak"] > row["costs"]["testing"]["peak"] > 0
    by_label = {row["label"]: row for row in found["rows"]}
    assert by_label["rev_vit_digits"]["difference"] is None
    peaks = {name: by_label[name]["costs"]["training"]["peak"] for name in SPECS}
    assert peaks["rev_vit_digits"] < peaks["momrev_vit_digits"] < peaks["vit_digits"]


def test_the_report_needs_nothing_else(
    done: subprocess.CompletedProcess[str], folder: Path
) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Three &lt;networks&gt; &amp; two seeds" in page
    assert page.count("<svg") == 4
    links = re.findall(r"(?:src|href|url)\s*[=(]\s*['\"]?([^'\")\s>]+)", page)
    assert [link for link in links if not link.startswith(("#", "data:image/png;base64,"))] == []
    assert "<script" not in page
    assert "@import" not in page
    names = re.findall(r'\bid="([^"]+)"', page)
    shared = {name for name in names if names.count(name) > 1}
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert shared & used == set()  # else one plot would be cut by another's outline
    text = (folder / "out" / "report.md").read_text(encoding="utf-8")
    plots = re.findall(r"\]\((.+\.(?:svg|png))\)", text)
    assert len(plots) == 6
    for plot in plots:
        assert (folder / "out" / plot).is_file()


def test_what_inverses_give_back_is_shown(
    done: subprocess.CompletedProcess[str], folder: Path
) -> None:
    """Of the networks that have one, in a table and in pictures."""
    rows = {row["label"]: row["inversion"] for row in json.loads(done.stdout)["rows"]}
    assert rows.pop("vit_digits") is None
    for inversion in rows.values():
        assert {row["arithmetic"] for row in inversion["rows"]} == {"float32", "bf16", "exact"}
        assert max(row["layers"] for row in inversion["rows"]) == 6
        for row in inversion["rows"]:
            if row["arithmetic"] == "exact":
                assert row["largest_error"] == 0
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>There and back: ") == page.count("<img ") == 2
    for label in rows:
        assert (folder / "out" / f"inversion_{label}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_shows_it(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync",
               "--disable-background-networking", "--no-first-run", "--disable-component-update",
               f"--user-data-dir={folder / 'profile'}", "--dump-dom",
               (folder / "out" / "report.html").as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("</svg>") == 4
    assert "Test accuracy" in shown.stdout


def test_given_again_it_runs_nothing(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    results = sorted((folder / "out").rglob("result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert len(before) == 6
    again = compare(folder)
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in results] == before
    assert "momrev_vit_digits: " in again.stdout
    assert "95% interval" in again.stdout
    assert "An interval of two seeds is very wide" in (folder / "out" / "report.md").read_text()


@pytest.fixture
def refused_here(  # type: ignore[no-untyped-def]
    done: subprocess.CompletedProcess[str], folder: Path, invoked, monkeypatch: pytest.MonkeyPatch
):
    """The study given again with other options, in this process."""
    monkeypatch.chdir(folder)
    return lambda *options: invoked("compare", "study.yaml", "--output", "out", *options)


def test_less_does_not_replace_the_report(refused_here, folder: Path) -> None:  # type: ignore[no-untyped-def]
    page = (folder / "out" / "report.html").read_bytes()
    refused = refused_here("--seeds", "1", "--baseline", "vit_digits")
    assert refused.returncode == 2
    assert "would not: 2 seeds, the baseline rev_vit_digits" in refused.stderr
    assert (folder / "out" / "report.html").read_bytes() == page


def test_another_setting_is_another_study(refused_here) -> None:  # type: ignore[no-untyped-def]
    refused = refused_here("--set", "train.epochs=2")
    assert refused.returncode == 2
    assert "holds the run of another spec" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rev_vit_digit"], "did you mean `rev_vit_digits`"),
        (["rev_vit_digits", "--baseline", "vit"], "there is no `vit` to compare with"),
        (["rev_vit_digits", "--sweep", "gamma"], "is not of the form"),
        (["rev_vit_digits", "--sweep", "train.seed=1,2"], "a comparison has seeds of its own"),
        (["vit_digits", "--sweep", "constants.gamma=0,1"], "they have no constants"),
        (["momrev_vit_digits", "--sweep", "constants.gama=0,1"], "did you mean `gamma`"),
        (["vit_digits", "--sweep", "trian.epochs=1,2"], "did you mean `train`"),
        (["vit_digits", "--target", "90"], "from 0 to 1, and the target 90; 90% is 0.9"),
        (["rev_vit_digits", "momentum_digits.yaml"], "is a study, and not a spec"),
        (["rev_vit_digits", "rev_vit_digits"], "would both be called rev_vit_digits"),
    ],
)
def test_mistakes(arguments: list[str], said: str, invoked) -> None:  # type: ignore[no-untyped-def]
    studies = Path(__file__).parents[2] / "specs" / "studies"
    arguments = [str(studies / a) if a.endswith(".yaml") else a for a in arguments]
    done = invoked("compare", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
