"""archspec train, end to end on real digits."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

import archspec as package
from archspec.loading import load

SHORT = ("--set", "train.epochs=6", "--set", "stages.trunk.depth=2")


def test_a_short_run_learns_and_leaves_its_folder(archspec, tmp_path) -> None:
    done = archspec("train", "momrev_vit_digits", *SHORT, "--output", "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["test_accuracy"] > 0.5
    assert result["epochs"] == 6
    assert result["output"] == "run"
    assert result["seconds"] > 0
    run = tmp_path / "run"
    model = package.build(run / "spec.yaml")
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert load(run / "spec.yaml").spec.train.epochs == 6
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    again = archspec("train", "momrev_vit_digits", *SHORT, "--output", "run", "--json")
    assert json.loads(again.stdout) == result


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way")
def test_an_interrupted_run_goes_on(archspec, tmp_path) -> None:
    settings = [part for setting in SHORT[1::2] for part in ("--set", setting)]
    arguments = ["train", "momrev_vit_digits", *settings, "--output", "run"]
    command = [sys.executable, "-m", "archspec", *arguments]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"stopped by SIGINT after .*epoch \d.*goes on from there in run", err)
    assert "Traceback" not in err
    done = archspec(*arguments, "--json")
    assert json.loads(done.stdout)["epochs"] == 6


def test_another_spec_does_not_overwrite_a_run(invoked, tmp_path) -> None:
    first = ("--set", "train.epochs=1", "--set", "stages.trunk.depth=1", "--output", "run")
    assert invoked("train", "rev_vit_digits", *first).returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = invoked("train", "momrev_vit_digits", *first)
    assert done.returncode == 2
    assert "error[E604]" in done.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_spec_without_data_says_so(invoked) -> None:
    done = invoked("train", "rev_vit_digits", "--set", "data=")
    assert done.returncode == 2
    assert "error[E605]" in done.stderr


def test_a_hopeless_inverse_is_told_before_training(invoked) -> None:
    settings = ["train.epochs=1", "stages.trunk.constants.gamma=0.5", "stages.trunk.depth=40"]
    given = [part for setting in (*settings, "data=") for part in ("--set", setting)]
    done = invoked("train", "momrev_vit_digits", *given)
    assert "warning: the inverse of stage trunk amplifies rounding" in done.stderr
    assert "`archspec build` measures it" in done.stderr
    done = invoked("train", "momrev_vit_digits", "--set", "data=")
    assert "warning" not in done.stderr


def test_a_stream_that_leaves_its_grid_ends_a_run(invoked) -> None:
    settings = ["stages.trunk.arithmetic={exact: 22}", "train.warmup=0", "train.learning_rate=10"]
    given = [part for setting in settings for part in ("--set", setting)]
    done = invoked("train", "momrev_vit_digits", *given)
    assert done.returncode == 1
    assert re.search(r"Error: stage `trunk`, .*: stream `\w+` reached ", done.stderr)
    assert "with `arithmetic: {exact: 22}` streams stay below 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_main_job_reaches_97_percent(archspec) -> None:
    """The README's first command, whole."""
    done = archspec("train", "momrev_vit_digits", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_accuracy"] >= 0.97
