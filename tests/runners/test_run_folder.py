"""Whole files, and folders that belong to one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from torch import nn

from archspec.diagnostics import SpecError
from archspec.loading import Loaded, load
from runners.files import replacing
from runners.run_folder import RunFolder, TrainResult, finished, identity, keep_metrics, opened
from runners.weights import load_weights, save_weights

Tiny = Callable[..., Loaded]


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half \udc00", encoding="utf-8")
    assert listing(tmp_path) == {"file": b"old"}


def test_a_write_replaces_the_file_and_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / ".file.partial").write_text("half of something longer")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert listing(tmp_path) == {"file": b"new"}


def test_weights_that_layers_share_are_written_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    save_weights(tmp_path / "w.safetensors", model, 3)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert len(file.keys()) == 3
    wanted = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].weight)
    load_weights(tmp_path / "w.safetensors", model)
    assert torch.equal(model[2].weight, wanted)


def test_identity_is_of_the_meaning_and_not_of_the_spelling(tiny: Tiny) -> None:
    first = identity(tiny().spec)
    spelt = identity(
        tiny(head=["layer_norm", {"pool": {"by": "mean"}}, {"linear": "classes"}]).spec
    )
    assert spelt == first
    trained = identity(tiny("train.epochs=9").spec)
    assert trained.architecture == first.architecture
    assert trained.spec != first.spec
    assert identity(tiny("stages.trunk.depth=2").spec).architecture != first.architecture


def test_the_number_of_workers_is_no_part_of_an_identity(tiny: Tiny) -> None:
    """Nothing that a run gives depends on it."""
    keys = {"data": {"image_folder": {"path": "x"}}, "input": {"image": [1, 8, 8]}}
    few, many = (tiny(f"data.image_folder.workers={n}", **keys).spec for n in (0, 4))
    assert identity(few) == identity(many)


def test_a_key_that_is_not_said_is_no_part_of_an_identity(tiny: Tiny) -> None:
    """A later version may have more of them, and goes on with the runs of earlier ones."""
    assert identity(tiny("train.accumulate=1").spec) == identity(tiny().spec)
    assert "accumulate" in tiny().spec.model_dump()["train"]


def test_a_run_of_another_version_is_said_to_be_one(tiny: Tiny, tmp_path: Path) -> None:
    """And not of another spec."""
    loaded, folder = tiny(), RunFolder(tmp_path)
    who = identity(loaded.spec)
    with opened(folder, loaded, who):
        pass
    described = json.loads(folder.run.read_text())
    folder.run.write_text(json.dumps({**described, "spec_hash": "another"}))
    with pytest.raises(SpecError, match="holds a run of this spec by another version"):
        finished(folder, who)


def test_a_folder_describes_its_run(tiny: Tiny, tmp_path: Path) -> None:
    loaded, folder = tiny(), RunFolder(tmp_path / "deep" / "run")
    who = identity(loaded.spec)
    with opened(folder, loaded, who):
        pass
    described = json.loads(folder.run.read_text())
    assert described["spec_hash"] == who.spec
    assert described["architecture_hash"] == who.architecture
    assert set(described["versions"]) == {"python", "torch", "torchvision", "archspec-reversible"}
    again = load(folder.spec)
    assert again.spec == loaded.spec
    assert identity(again.spec) == who


def test_the_folder_of_another_spec_is_left_untouched(tiny: Tiny, tmp_path: Path) -> None:
    folder, first, other = RunFolder(tmp_path), tiny(), tiny("train.seed=1")
    with opened(folder, first, identity(first.spec)):
        pass
    before = listing(tmp_path)
    for attempt in (finished, lambda f, w: opened(f, other, w).__enter__()):
        with pytest.raises(SpecError, match=r"error\[E604\] .* holds the run of another") as caught:
            attempt(folder, identity(other.spec))
        assert str(caught.value).endswith("note: train.seed is 0 there, 1 here")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("metric", ["beauty", 3, None])
def test_a_result_of_an_unknown_metric_is_refused(
    tiny: Tiny, tmp_path: Path, metric: object
) -> None:
    loaded, folder = tiny(), RunFolder(tmp_path)
    with opened(folder, loaded, identity(loaded.spec)):
        names = {field.name.replace("_metric", f"_{metric}"): 1 for field in fields(TrainResult)}
        folder.result.write_text(json.dumps({**names, "metric": metric}))
        with pytest.raises(SpecError, match=r"error\[E604\] .* is not a run's result"):
            finished(folder, identity(loaded.spec))


@pytest.mark.parametrize("name", ["notes.txt", "spec.yaml"])
def test_a_folder_with_other_files_is_refused(tiny: Tiny, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SpecError, match=rf"error\[E604\] .* is no run and holds {name}"):
        finished(RunFolder(tmp_path), identity(tiny().spec))
    assert listing(tmp_path) == {name: b"mine"}


def test_a_file_in_place_of_the_folder_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SpecError, match=r"error\[E604\] .* is a file"):
        finished(RunFolder(tmp_path / "run"), identity(tiny().spec))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec_hash": 1'])
def test_a_description_that_is_none_is_refused(tiny: Tiny, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SpecError, match=r"error\[E604\]"):
        finished(RunFolder(tmp_path), identity(tiny().spec))


def test_a_folder_that_another_process_holds_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny()
    with FileLock(tmp_path / ".lock"):
        context = opened(RunFolder(tmp_path), loaded, identity(loaded.spec))
        with pytest.raises(SpecError, match=r"error\[E604\] another process"):
            context.__enter__()
    assert set(listing(tmp_path)) <= {".lock"}


def test_metrics_of_lost_epochs_are_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep_metrics(folder, 0)
    assert folder.metrics.read_text() == ""
    folder.metrics.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    keep_metrics(folder, 1)
    assert folder.metrics.read_text() == '{"epoch": 1}\n'
