"""Exported networks: what other programs compute from the files is what the run's network does."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from finished_runs import RUNS, finished_run, spec_of
from safetensors import safe_open
from torch import Tensor, nn

import archspec
from archspec.loading import load
from archspec.tree import read
from compiler.signing import is_as_written
from runners.export import (
    ExportError,
    file_name,
    metadata,
    notes,
    weights_beside,
    write_onnx,
    write_python,
    write_safetensors,
    write_torch,
)
from runners.train import build_model, train
from runners.trained import Trained, open_trained

BATCHES = (1, 2, 5)
"""Other sizes than the one that programs are traced with."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Trained networks of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in RUNS:
        finished_run(kind, folder / kind)
    return {kind: open_trained(folder / kind) for kind in RUNS}


def samples(trained: Trained, batch: int) -> tuple[Tensor, ...]:
    """An input and side inputs, in their order."""
    generator, spec = torch.Generator().manual_seed(batch), trained.loaded.spec
    shapes = (spec.input.shape, *(entry.shape for entry in spec.side.values()))
    return tuple(torch.randn(batch, *shape.sizes, generator=generator) for shape in shapes)


def named(trained: Trained, batch: int) -> dict[str, Tensor]:
    """The same by name."""
    names = ("inputs", *trained.loaded.spec.side)
    return dict(zip(names, samples(trained, batch), strict=True))


@torch.no_grad()
def computed(network: nn.Module, trained: Trained, batch: int) -> Tensor:
    given = named(trained, batch)
    found: Tensor = network(given.pop("inputs"), **given)
    return found


def outputs(trained: Trained, batch: int) -> Tensor:
    return computed(trained.model, trained, batch)


def in_plain_layout(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("kind", list(RUNS))
def test_weights_say_what_they_are(kind: str, runs: dict[str, Trained], tmp_path: Path) -> None:
    trained, path = runs[kind], tmp_path / "model.safetensors"
    write_safetensors(trained, path, None)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said == metadata(trained)
    assert said["archspec"] == archspec.__version__
    assert said["epoch"] == str(trained.epoch)
    again = build_model(load(read(said["spec"], "the file").plain())).eval()
    safetensors.torch.load_model(again, path)
    assert torch.equal(computed(again, trained, 3), outputs(trained, 3))


def test_training_starts_from_exported_weights(runs: dict[str, Trained], tmp_path: Path) -> None:
    write_safetensors(runs["momentum"], tmp_path / "model.safetensors", None)
    settings = (f"train.start_from='{tmp_path / 'model.safetensors'}'", "train.learning_rate=1e-12")
    result = train(spec_of("momentum", *settings), tmp_path / "run", device="cpu", quiet=True)
    before = json.loads(runs["momentum"].folder.result.read_text())
    assert result.test_metric == before["test_accuracy"]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 reading its own
@pytest.mark.parametrize("kind", list(RUNS))
def test_a_program_gives_the_same_bits(kind: str, runs: dict[str, Trained], tmp_path: Path) -> None:
    trained, path = runs[kind], tmp_path / "model.pt2"
    write_torch(trained, path, None)
    said = {"archspec.json": ""}
    program = torch.export.load(path, extra_files=said).module()
    assert json.loads(said["archspec.json"]) == metadata(trained)
    # A run lays its kernels out as is fastest, which moves the last bits of convolutions.
    plain = replace(trained, model=in_plain_layout(trained.model))
    for batch in BATCHES:
        found = program(*samples(trained, batch))
        assert torch.equal(found, outputs(plain, batch))
        torch.testing.assert_close(found, outputs(trained, batch), rtol=1e-5, atol=1e-5)


def test_a_program_of_one_size(runs: dict[str, Trained], tmp_path: Path) -> None:
    trained = runs["convolution"]
    write_torch(trained, tmp_path / "model.pt2", 4)
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(*samples(trained, 4)), outputs(trained, 4))
    with pytest.raises((AssertionError, RuntimeError)):
        program(*samples(trained, 5))


def test_a_program_holds_no_path_of_this_machine(runs: dict[str, Trained], tmp_path: Path) -> None:
    for write, path in ((write_torch, tmp_path / "a.pt2"), (write_onnx, tmp_path / "a.onnx")):
        write(runs["momentum"], path, None)
        assert str(Path(archspec.__file__).parents[1]).encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", list(RUNS))
def test_onnx_agrees(kind: str, runs: dict[str, Trained], tmp_path: Path) -> None:
    trained, path = runs[kind], tmp_path / "model.onnx"
    write_onnx(trained, path, None)
    onnx.checker.check_model(path)
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert metadata(trained).items() <= said.items()
    session = onnxruntime.InferenceSession(path)
    for batch in BATCHES:
        given = {name: value.numpy() for name, value in named(trained, batch).items()}
        (found,) = session.run(["outputs"], given)
        wanted = outputs(trained, batch)
        assert found.shape == wanted.shape
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("my-rgb.v2", "my_rgb_v2.py"),
        ("3d", "_3d.py"),
        ("class", "_class.py"),
        ("plain", "plain.py"),
    ],
)
def test_python_can_be_imported_by_its_name(name: str, file: str) -> None:
    assert file_name(name, "python") == file
    assert file_name(name, "onnx") == f"{name}.onnx"


def test_without_onnx_the_extra_is_named(
    runs: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.export.find_spec", lambda name: None)
    message = r'ONNX needs onnx and onnxscript: .* "archspec-reversible\[onnx\]"'
    with pytest.raises(ExportError, match=message):
        write_onnx(runs["momentum"], tmp_path / "model.onnx", None)
    assert list(tmp_path.iterdir()) == []


RUN = """
import importlib.util, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("archspec", "compiler", "runners"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Blocker())
from safetensors.torch import load_file
spec = importlib.util.spec_from_file_location("model", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["model"] = module
spec.loader.exec_module(module)
import torch
found = load_file(sys.argv[2])
network = module.trained()
assert not network.training
with torch.no_grad():
    wanted = found.pop("outputs")
    assert torch.equal(network(found.pop("inputs"), **found), wanted)
assert not {"archspec", "compiler", "runners"} & set(sys.modules)
print("the same bits")
"""


@pytest.mark.parametrize("kind", list(RUNS))
def test_python_gives_the_same_bits_without_archspec(
    kind: str, runs: dict[str, Trained], tmp_path: Path
) -> None:
    trained, path = runs[kind], tmp_path / "model.py"
    write_python(trained, path, None)
    text = path.read_text(encoding="utf-8")
    assert is_as_written(text)
    assert "imports torch alone" not in text
    assert weights_beside(path).is_file()
    problem = {**named(trained, 5), "outputs": outputs(trained, 5)}
    safetensors.torch.save_file(problem, tmp_path / "problem")
    script = tmp_path / "run.py"
    script.write_text(RUN, encoding="utf-8")
    command = [sys.executable, "-I", str(script), str(path), str(tmp_path / "problem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same bits\n"


def test_what_a_file_leaves_out_is_told(runs: dict[str, Trained]) -> None:
    assert notes(runs["momentum"], "torch") == []
    (note,) = notes(runs["exact"], "torch")
    assert "without the check that streams stay in its range" in note
    (note,) = notes(runs["exact"], "onnx")
    assert "may round to a neighbour" in note
    assert notes(runs["exact"], "python") == []
