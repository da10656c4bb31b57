"""A run that is killed, at any moment, ends as if it had not been."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import spec_of
from same_run import assert_same_run, comparable, records

from archspec.diagnostics import SpecError
from archspec.dumping import dump
from archspec.loading import Loaded, load
from runners import loop
from runners import train as module
from runners.errors import TrainingStopped
from runners.signals import asked_to_end
from runners.train import train
from runners.weights import epoch_of

Tiny = Callable[..., Loaded]


@pytest.fixture(autouse=True)
def hears_interrupts() -> Iterator[None]:
    """Also where the tests were started in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import runners.loop, runners.run, runners.train
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
    runners.run.keep_weights = die_in_place_of(runners.run.keep_weights, 1)
runners.train.train(load(spec), Path(output), device="cpu", quiet=True)
"""


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
        "spec_hash", "standing", "model", "optimizer", "precision", "average", "generators"
    }  # fmt: skip


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_refused(tiny: Tiny, tmp_path: Path, damage: bytes | None) -> None:
    train(tiny("train.epochs=1"), tmp_path, quiet=True)
    (tmp_path / "result.json").unlink()
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5000] if damage is None else damage)
    with pytest.raises(SpecError, match=r"error\[E604\] .*\.pt is truncated, or no checkpoint"):
        train(tiny("train.epochs=1"), tmp_path, quiet=True)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "damage", ["truncated", "one bit", "random", "foreign", "lost", "of another spec"]
)
def test_the_checkpoint_before_a_damaged_one_is_used(
    tiny: Tiny,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """At every number of epochs, so that the best one is before and after the damage."""
    whole = train(tiny("train.epochs=5"), tmp_path / "whole", quiet=True)
    for epochs in (2, 3, 4):
        output = tmp_path / f"{epochs}"
        stop_after(monkeypatch, tiny("train.epochs=5"), output, epochs)
        checkpoint = output / "checkpoint.pt"
        if damage == "truncated":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-5000])
        elif damage == "one bit":
            content = bytearray(checkpoint.read_bytes())
            content[len(content) // 2] ^= 1
            checkpoint.write_bytes(content)
        elif damage == "random":
            checkpoint.write_bytes(random.Random(epochs).randbytes(300))
        elif damage == "foreign":
            torch.save({"model": {}}, checkpoint)
        elif damage == "of another spec":
            whole_one = torch.load(checkpoint, weights_only=True)
            torch.save({**whole_one, "spec_hash": "0"}, checkpoint)
        else:
            checkpoint.unlink()
        caplog.clear()
        again = train(tiny("train.epochs=5"), output, quiet=True)
        assert comparable(again) == comparable(whole)
        assert_same_run(output, tmp_path / "whole")
        if damage != "lost":
            assert f"; going on from previous.pt, after epoch {epochs - 1}" in caplog.text
        assert not (output / "previous.pt").exists()


@pytest.mark.usefixtures("stand_in")
def test_a_run_without_its_checkpoints_says_that_it_begins_anew(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, tiny(), tmp_path, 2)
    for file in tmp_path.glob("*.pt"):
        file.unlink()
    assert train(tiny(), tmp_path, quiet=True).epochs == 3
    assert "has no checkpoint: the run begins anew" in caplog.text


def stop_after(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, output: Path, epochs: int) -> None:
    """Train so many epochs of a run, and as good as kill it."""

    def stopped(run: module.Run, standing: module.Standing, *arguments: Any) -> module.Standing:
        if standing.epochs == epochs:
            raise KeyboardInterrupt
        return one_epoch(run, standing, *arguments)

    one_epoch = module.one_epoch
    with monkeypatch.context() as patch:
        patch.setattr(module, "one_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(loaded, output, quiet=True)


@pytest.mark.usefixtures("stand_in")
def test_best_weights_of_a_lost_epoch_are_not_those_of_an_earlier_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine does not repeat the epoch that is lost, bit for bit."""
    stop_after(monkeypatch, tiny(), tmp_path, 2)
    (tmp_path / "checkpoint.pt").unlink()
    content = torch.load(tmp_path / "previous.pt", weights_only=True)
    assert content["standing"]["best"]["epoch"] == 1
    monkeypatch.setattr("runners.loop.learning_rate", lambda *_: 0.0)
    result = train(tiny(), tmp_path, quiet=True)
    assert epoch_of(tmp_path / "best.safetensors") == result.best_epoch


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_ends(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Within the first epoch, and within a later one, with a mean of weights and parts of steps."""
    settings, before = ("train.ema=0.9", "train.accumulate=3"), signal.getsignal(number)
    whole = train(tiny(*settings), tmp_path / "whole", quiet=True)
    step = loop.take_step
    for moments in ((7,), (27, 9)):
        output = tmp_path / f"stopped{len(moments)}"
        for moment in moments:
            steps = iter(range(moment - 1))

            def signalled(*arguments: Any, steps: Any = steps) -> Any:
                if next(steps, None) is None:
                    signal.raise_signal(number)
                return step(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(loop, "take_step", signalled)
                with pytest.raises(TrainingStopped) as caught:
                    train(tiny(*settings), output, quiet=True)
            assert caught.value.signal == number
            assert signal.getsignal(number) == before
        again = train(tiny(*settings), output, quiet=True)
        assert comparable(again) == comparable(whole)
        assert_same_run(output, tmp_path / "whole")
    assert caught.value.where == "step 16 of epoch 2"


@pytest.mark.usefixtures("stand_in")
def test_a_signal_while_validating_ends_at_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(), tmp_path / "whole", quiet=True)
    evaluate = module.evaluate

    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", signalled)
        with pytest.raises(TrainingStopped, match="step 20 of epoch 1"):
            train(tiny(), tmp_path / "stopped", quiet=True)
    assert not (tmp_path / "stopped" / "metrics.jsonl").read_text()
    assert comparable(train(tiny(), tmp_path / "stopped", quiet=True)) == comparable(whole)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("stand_in")
def test_a_signal_that_is_ignored_stays_so(tiny: Tiny, tmp_path: Path) -> None:
    """As `nohup` has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asked_to_end() as asked:
        signal.raise_signal(signal.SIGINT)
    assert not asked.by


@pytest.mark.usefixtures("stand_in")
def test_a_second_signal_ends_without_waiting(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.take_step

    def twice(*arguments: Any) -> Any:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)  # as often as it comes
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(loop, "take_step", twice)
    with pytest.raises(TrainingStopped):  # all at once are one
        train(tiny(), tmp_path / "one", quiet=True)
    monkeypatch.setattr("runners.signals.ONCE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "two", quiet=True)


@pytest.mark.usefixtures("stand_in")
def test_long_epochs_are_saved_on_the_way(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(), tmp_path / "whole", quiet=True)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    steps, step = iter(range(29)), loop.take_step

    def killed(*arguments: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "stopped", quiet=True)
    content = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert (content["standing"]["epochs"], content["standing"]["steps"]) == (1, 9)
    assert comparable(train(tiny(), tmp_path / "stopped", quiet=True)) == comparable(whole)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["density", "flow_matching"])
def test_noise_goes_on_where_it_was(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training draws beside the data is that of an uninterrupted run."""
    loaded = spec_of(kind)
    train(loaded, tmp_path / "whole", device="cpu", quiet=True)
    steps, step = iter(range(20)), loop.take_step

    def signalled(*arguments: Any) -> Any:
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", signalled)
        with pytest.raises(TrainingStopped):
            train(loaded, tmp_path / "stopped", device="cpu", quiet=True)
    train(loaded, tmp_path / "stopped", device="cpu", quiet=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import runners.train
from archspec.loading import load

spec, output = sys.argv[1:]
one_epoch = runners.train.one_epoch

def full_after_one(run, standing, *arguments):
    if standing.epochs == 1:  # no file may grow past what a checkpoint needs
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return one_epoch(run, standing, *arguments)

runners.train.one_epoch = full_after_one
try:
    runners.train.train(load(spec), Path(output), device="cpu", quiet=True)
except runners.train.TrainingError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
def test_a_full_disk_leaves_the_last_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    spec, output = tmp_path / "tiny.yaml", tmp_path / "full"
    spec.write_text(dump(tiny().tree))
    command = [sys.executable, "-c", FULL_DISK, str(spec), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cannot write .*checkpoint\.pt after epoch 2: ", done.stdout)
    assert torch.load(output / "checkpoint.pt", weights_only=True)["standing"]["epochs"] == 1
    assert not list(output.glob(".*.partial"))
    whole = train(load(spec), tmp_path / "whole", device="cpu", quiet=True)
    assert comparable(train(load(spec), output, device="cpu", quiet=True)) == comparable(whole)
    assert_same_run(output, tmp_path / "whole")


@pytest.mark.usefixtures("stand_in")
def test_a_run_killed_before_its_result_reads_the_test_set_again(
    tiny: Tiny, tmp_path: Path
) -> None:
    first = train(tiny(), tmp_path, quiet=True)
    for name in ("result.json", "last.safetensors"):
        (tmp_path / name).unlink()
    assert train(tiny(), tmp_path, quiet=True) == first
    assert (tmp_path / "last.safetensors").is_file()
