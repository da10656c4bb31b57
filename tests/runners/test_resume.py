"""A run that is killed, at any moment, ends as if it had not been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from archspec.diagnostics import SpecError
from archspec.dumping import dump
from archspec.loading import Loaded, load
from runners.run_folder import TrainResult
from runners.train import train

Tiny = Callable[..., Loaded]

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import runners.loop, runners.train
from archspec.loading import load

def die_in_place_of(call, number, after=lambda *_: None):
    # The call that kills this process, after a part of its work.
    left = iter(range(number - 1))
    def wrapped(*arguments):
        if next(left, None) is None:
            after(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapped

def write_half(content, path):
    path.write_bytes(b"half of a checkpoint")

spec, output, moment = sys.argv[1:]
if moment == "in an epoch":
    runners.loop.take_step = die_in_place_of(runners.loop.take_step, 27)
elif moment == "while writing a checkpoint":
    torch.save = die_in_place_of(torch.save, 2, write_half)
else:
    runners.train.save_weights = die_in_place_of(runners.train.save_weights, 2)
runners.train.train(load(spec), Path(output), device="cpu", quiet=True)
"""


def comparable(result: TrainResult) -> tuple[float, ...]:
    return result.test_metric, result.test_loss, result.validation_metric, result.best_epoch


def records(folder: Path) -> list[dict[str, object]]:
    clock = {"seconds", "data_seconds", "samples_per_second", "memory_bytes"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    for name in ("best.safetensors", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def run_killed(spec: Path, output: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, str(spec), str(output), moment]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tiny: Tiny, tmp_path: Path
) -> None:
    spec, killed = tmp_path / "tiny.yaml", tmp_path / "killed"
    spec.write_text(dump(tiny().tree))
    whole = train(load(spec), tmp_path / "whole", device="cpu", quiet=True)
    # One run, killed three times, each time at another moment.
    run_killed(spec, killed, "in an epoch")
    assert len(records(killed)) == 1
    run_killed(spec, killed, "while writing a checkpoint")
    assert (killed / ".checkpoint.pt.partial").read_bytes() == b"half of a checkpoint"
    run_killed(spec, killed, "before the best weights")
    again = train(load(spec), killed, device="cpu", quiet=True)
    assert comparable(again) == comparable(whole)
    assert_same_run(killed, tmp_path / "whole")
    assert not list(killed.glob(".*.partial"))


@pytest.mark.usefixtures("stand_in")
def test_an_interrupted_run_keeps_its_last_epoch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners import loop

    whole = train(tiny(), tmp_path / "whole", quiet=True)
    steps, step = iter(range(45)), loop.take_step

    def interrupted(*arguments: object) -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "stopped", quiet=True)
    assert len(records(tmp_path / "stopped")) == 2
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert comparable(train(tiny(), tmp_path / "stopped", quiet=True)) == comparable(whole)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("stand_in")
def test_a_checkpoint_holds_no_code(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("train.epochs=1"), tmp_path, quiet=True)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["standing"]["epochs"] == 1
    assert set(content) == {
        "spec_hash", "standing", "model", "optimizer", "precision", "generators"
    }  # fmt: skip


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_refused(tiny: Tiny, tmp_path: Path, damage: bytes | None) -> None:
    train(tiny("train.epochs=1"), tmp_path, quiet=True)
    (tmp_path / "result.json").unlink()
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5000] if damage is None else damage)
    with pytest.raises(SpecError, match=r"error\[E604\] .*checkpoint\.pt cannot be read"):
        train(tiny("train.epochs=1"), tmp_path, quiet=True)


@pytest.mark.usefixtures("stand_in")
def test_a_run_killed_before_its_result_reads_the_test_set_again(
    tiny: Tiny, tmp_path: Path
) -> None:
    first = train(tiny(), tmp_path, quiet=True)
    for name in ("result.json", "last.safetensors"):
        (tmp_path / name).unlink()
    assert train(tiny(), tmp_path, quiet=True) == first
    assert (tmp_path / "last.safetensors").is_file()
