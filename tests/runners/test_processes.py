"""Several processes that train one network, by `torchrun` with gloo on the CPU."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import slow_training
import torch
from finished_runs import spec_of
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shared
from torch.distributed.checkpoint.state_dict_saver import save

from archspec.diagnostics import SpecError
from archspec.dumping import dump
from archspec.loading import Loaded, load
from runners.devices import check_processes
from runners.run_folder import RunFolder
from runners.sharded_checkpoint import PlainPlanner, PlainReader
from runners.train import recipe_and_data, train

Tiny = Callable[..., Loaded]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo and torchrun as on Linux")

# Nothing is drawn, and rounding is not made larger by dividing by small second moments.
PLAIN = (
    "data.digits.augment=[]",
    "stages.trunk.functions.G=[layer_norm, {mlp: 1}]",
    "train.optimizer=sgd",
    "train.learning_rate=0.05",
)
RUNS = ("one", "two")
MOMENTUM: dict[str, Any] = {
    "trunk": {
        "depth": 2,
        "coupling": "momentum_pair",
        "functions": {
            "F": ["layer_norm", {"attention": {"heads": 2}}],
            "G": ["layer_norm", {"mlp": 1}],
        },
        "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99]}},
    }
}


def launched(
    spec: Path,
    output: Path,
    *settings: str,
    processes: int = 2,
    program: Sequence[str] = ("-m", "archspec"),
) -> subprocess.Popen[str]:
    given = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        *program, "train", str(spec), "--output", str(output), "--device", "cpu", *given,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def together(spec: Path, output: Path, *settings: str, processes: int = 2) -> str:
    """What the processes print in the end, all being well."""
    process = launched(spec, output, *settings, processes=processes)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def written(loaded: Loaded, path: Path) -> Path:
    path.write_text(dump(loaded.tree))
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_as_one(one: Path, other: Path) -> None:
    """The same but for the order in which gradients and losses are summed."""
    for name in ("best.safetensors", "last.safetensors"):
        weights, expected = load_file(other / name), load_file(one / name)
        assert list(weights) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)
    metric = json.loads((other / "result.json").read_text())["metric"]
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        for key in ("train_loss", "validation_loss", f"validation_{metric}", "learning_rate"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4)


def assert_two_give_what_one_gives(spec: Path, folder: Path, parallel: str) -> None:
    alone = train(load(spec), folder / "one", device="cpu", quiet=True)
    said = together(spec, folder / "two", f"train.parallel={parallel}", "train.accumulate=2")
    assert len(re.findall("test accuracy", said)) == 1
    assert_as_one(folder / "one", folder / "two")
    result = json.loads((folder / "two" / "result.json").read_text())
    assert result["parameters"] == alone.parameters
    assert result["test_loss"] == pytest.approx(alone.test_loss, rel=1e-4)


def test_two_processes_that_share_weights_give_those_of_one(tiny: Tiny, tmp_path: Path) -> None:
    spec = written(tiny(*PLAIN, stages=MOMENTUM), tmp_path / "tiny.yaml")
    assert_two_give_what_one_gives(spec, tmp_path, "fsdp2")


@pytest.mark.parametrize("kind", ["density", "flow_matching"])
def test_networks_that_make_images_share_weights(kind: str, tmp_path: Path) -> None:
    """Each process draws noise of its own, so that two are held against two."""
    settings = ("train.epochs=1", "train.ema=null", *PLAIN[2:], "train.learning_rate=0.01")
    spec = written(spec_of(kind, *settings), tmp_path / "spec.yaml")
    for parallel in ("ddp", "fsdp2"):
        together(spec, tmp_path / parallel, f"train.parallel={parallel}")
    assert_as_one(tmp_path / "ddp", tmp_path / "fsdp2")


def image_files(root: Path, damaged: int) -> None:
    """Of two classes, and so many files of each split that are none."""
    source = torch.Generator().manual_seed(0)
    for split, count in (("train", 60), ("test", 12)):
        for number in range(count):
            path = root / split / f"class{number % 2}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (8, 8), generator=source, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)
            if number < damaged:
                path.write_bytes(b"no image")


def test_two_processes_give_the_weights_of_one(tiny: Tiny, tmp_path: Path) -> None:
    """Each sample counts alike, though files that cannot be read leave one process fewer."""
    image_files(tmp_path / "images", damaged=3)
    folder = {"path": str(tmp_path / "images"), "validation": 0.2, "mean": [0.5], "std": [0.5]}
    keys: dict[str, Any] = {"data": {"image_folder": folder}, "task": {"classify": 2}}
    settings = (*PLAIN[1:], "train.batch=4", "train.learning_rate=0.02")
    spec = written(tiny(*settings, stages=MOMENTUM, **keys), tmp_path / "tiny.yaml")
    assert_two_give_what_one_gives(spec, tmp_path, "ddp")
    one, two = (json.loads((tmp_path / run / "unreadable.json").read_text()) for run in RUNS)
    assert one == two
    assert len(one) == 6


def ended(spec: Path, output: Path) -> None:
    """A run that gets SIGTERM, as Slurm sends it, in its third epoch or later."""
    process = launched(spec, output, program=[slow_training.__file__])
    metrics = output / "metrics.jsonl"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(re.findall("stopped by SIGTERM after", err)) == 1, err
    assert not (output / "result.json").exists()


def test_processes_that_are_ended_go_on(tiny: Tiny, tmp_path: Path) -> None:
    spec = written(tiny(*PLAIN, "train.epochs=6", stages=MOMENTUM), tmp_path / "tiny.yaml")
    train(load(spec), tmp_path / "whole", device="cpu", quiet=True)
    ended(spec, tmp_path / "stopped")
    together(spec, tmp_path / "stopped")
    assert_as_one(tmp_path / "whole", tmp_path / "stopped")


def test_processes_that_share_weights_go_on(tiny: Tiny, tmp_path: Path) -> None:
    """With another number of them, from the checkpoint before one that is damaged since."""
    settings = (*PLAIN, "train.epochs=6", "train.parallel=fsdp2")
    spec, output = written(tiny(*settings, stages=MOMENTUM), tmp_path / "t.yaml"), tmp_path / "run"
    train(load(spec), tmp_path / "whole", device="cpu", quiet=True)
    ended(spec, output)
    part = max((output / "checkpoint").glob("*.distcp"), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:100])
    process = launched(spec, output, processes=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(re.findall("; going on from ", err)) == 1, err
    assert_as_one(tmp_path / "whole", output)


def test_batch_statistics_go_on_with_shared_weights(tiny: Tiny, tmp_path: Path) -> None:
    """They are of each process's share, and the first one's are kept."""
    stage = {
        "depth": 1,
        "coupling": "additive",
        "functions": {name: ["batch_norm", {"conv": {}}] for name in "FG"},
    }
    loaded = tiny(
        *PLAIN[:1],
        *PLAIN[2:],
        "train.epochs=4",
        "train.parallel=fsdp2",
        stem=[{"conv": {"out": 4}}, "batch_norm"],
        stages={"trunk": stage},
        head=[{"pool": "mean"}, {"linear": "classes"}],
    )
    spec = written(loaded, tmp_path / "tiny.yaml")
    together(spec, tmp_path / "whole")
    ended(spec, tmp_path / "stopped")
    together(spec, tmp_path / "stopped")
    for name in ("best.safetensors", "last.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("whole", "stopped"))
        assert all(torch.equal(other[key], value) for key, value in one.items())


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_an_index_of_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("harm").touch, ())

    # A name of what an allowed module has imported, as newer protocols can write it.
    parts = [b"torch.distributed.checkpoint.filesystem", b"os.mkdir", b"harm"]
    module, name, argument = (b"\x8c" + bytes([len(part)]) + part for part in parts)
    dotted = b"\x80\x04" + module + name + b"\x93" + argument + b"\x85R."
    for content in (pickle.dumps(Harmful()), dotted):
        (tmp_path / ".metadata").write_bytes(content)
        with pytest.raises(pickle.UnpicklingError, match="is no part of a checkpoint"):
            PlainReader(tmp_path).read_metadata()
    state = {"rate": Harmful(), "weight": torch.zeros(3)}
    writer = FileSystemWriter(tmp_path / "checkpoint")
    save(state, storage_writer=writer, no_dist=True)
    state["rate"] = 0.1
    reader = PlainReader(tmp_path / "checkpoint")
    with pytest.raises(CheckpointException, match="Weights only load failed"):
        load_shared(state, storage_reader=reader, planner=PlainPlanner(), no_dist=True)
    assert not (tmp_path / "harm").exists()
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        (("train.batch=31",), "cpu", "a batch of 31 cannot be shared among 2 processes"),
        (("train.parallel=fsdp2", "train.ema=0.9"), "cpu", "`ema` needs all weights in each"),
        ((), "mps", "several processes train on the CPU or on CUDA devices"),
    ],
)
def test_what_processes_cannot_do(
    tiny: Tiny, settings: tuple[str, ...], device: str, message: str
) -> None:
    loaded = tiny(*settings)
    recipe, _ = recipe_and_data(loaded)
    with pytest.raises(SpecError, match=message):
        check_processes(loaded, recipe, torch.device(device), 2)


def test_a_mistake_is_told_once(tiny: Tiny, tmp_path: Path) -> None:
    process = launched(written(tiny(), tmp_path / "tiny.yaml"), tmp_path / "run", "train.batch=31")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("a batch of 31 cannot be shared among 2 processes") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_several_processes_is_not_begun_anew_by_one(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    loaded = tiny("train.epochs=1")
    train(loaded, folder.path, device="cpu", quiet=True)
    folder.result.unlink()
    folder.checkpoint.unlink()
    folder.shared_checkpoint.mkdir()
    with pytest.raises(SpecError, match="processes that share the weights"):
        train(loaded, folder.path, device="cpu", quiet=True)
