"""The folder of a run: what it holds, and whose it is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from archspec.diagnostics import Diagnostic, SpecError
from archspec.dumping import dump
from archspec.loading import Loaded, load
from archspec.spec import ARCHITECTURE, Spec
from runners.files import replacing, write_json, write_text
from runners.tasks import METRICS

ANOTHER = "choose another folder with --output"
NEW_ONE = f"{ANOTHER}, or remove this one"
PACKAGES = ("archspec-reversible", "torch", "torchvision")
MOST_SHOWN = 3
"""So many differences of two specs are named."""
_NONE = "not"
"""What a value is that only the other spec has."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run comes to."""

    metric: str
    """What the task is measured by."""
    test_metric: float
    """Of the best weights, on the test set."""
    test_loss: float
    validation_metric: float
    """The one that the best weights were chosen by."""
    best_epoch: int
    epochs: int
    seconds: float
    """Of training and validation, all sittings of the run together."""
    parameters: int
    device: str
    output: str

    def as_json(self) -> dict[str, object]:
        """With the metric by its name: `test_accuracy`."""
        return {_named(key, self.metric): value for key, value in asdict(self).items()}

    @staticmethod
    def from_json(found: dict[str, Any]) -> TrainResult:
        """What `as_json` gave. Raises `KeyError` or `TypeError` where it is another's."""
        names = [field.name for field in fields(TrainResult)]
        return TrainResult(**{name: found[_named(name, found["metric"])] for name in names})


def _named(key: str, metric: str) -> str:
    return key.replace("_metric", f"_{metric}")


@dataclass(frozen=True)
class Identity:
    """Hashes of what was asked for: all of a resolved spec, and its architecture alone."""

    spec: str
    architecture: str
    of: Spec = field(repr=False, compare=False)


def identity(spec: Spec) -> Identity:
    """The identity of a resolved spec, however it is spelt."""
    return Identity(_hash(spec, None), _hash(spec, ARCHITECTURE), spec)


def _hash(spec: Spec, keys: tuple[str, ...] | None) -> str:
    # Without what has its default: a later version may have more keys, and older runs stay theirs.
    content = spec.model_dump(
        mode="json", include=None if keys is None else set(keys), exclude_defaults=True
    )
    if isinstance(content.get("data"), dict):
        for entry in content["data"].values():
            entry.pop("workers", None)  # their number changes nothing
    if keys == ARCHITECTURE:
        for stage in content["stages"].values():
            stage.pop("backward", None)  # the same weights, and the same function of them
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the files in it."""

    path: Path

    @property
    def run(self) -> Path:
        """Identity, versions, machine."""
        return self.path / "run.json"

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.path / "spec.yaml"

    @property
    def metrics(self) -> Path:
        """A JSON object for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """All that the next epoch depends on."""
        return self.path / "checkpoint.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before it."""
        return self.path / "previous.pt"

    @property
    def shared_checkpoint(self) -> Path:
        """The folder that takes its place where processes share the weights."""
        return self.path / "checkpoint"

    @property
    def shared_previous(self) -> Path:
        """The one before it."""
        return self.path / "previous"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint, of either kind."""
        kept = (self.checkpoint, self.previous, self.shared_checkpoint, self.shared_previous)
        return any(path.exists() for path in kept)

    @property
    def best(self) -> Path:
        """The weights of the best epoch on the validation split."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The weights of the last epoch."""
        return self.path / "last.safetensors"

    @property
    def result(self) -> Path:
        """What a finished run comes to."""
        return self.path / "result.json"

    @property
    def classes(self) -> Path:
        """The names of the classes, in the order of their labels, where the data have names."""
        return self.path / "classes.json"

    @property
    def unreadable(self) -> Path:
        """Files of the data set that were passed over, and why; not there where none was."""
        return self.path / "unreadable.json"

    @property
    def tensorboard(self) -> Path:
        """A folder of TensorBoard's files."""
        return self.path / "tensorboard"


def finished(folder: RunFolder, who: Identity) -> TrainResult | None:
    """The result of this run if it is finished. Raises `SpecError` if the folder is another's."""
    _refuse_others(folder, who)
    if not folder.result.is_file():
        return None
    try:
        found = json.loads(folder.result.read_text(encoding="utf-8"))
        result = TrainResult.from_json({**found, "output": str(folder.path)})  # it may have moved
        METRICS[result.metric].text(result.test_metric)  # which is told by its name
        return result
    except (ValueError, KeyError, TypeError):
        help = "remove this file alone: the same command then tests the run's best weights again"
        raise _refusal(f"{folder.result} is not a run's result", help) from None


@contextmanager
def opened(folder: RunFolder, loaded: Loaded, who: Identity) -> Iterator[None]:
    """The folder made and held against a second process; the first time, described.

    Raises `SpecError` where that cannot be.
    """
    lock = FileLock(folder.path / ".lock", timeout=0)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _refusal(f"another process is training in {folder.path}", "") from None
    except OSError as error:
        raise _refusal(f"cannot write in {folder.path}: {error.strerror}", ANOTHER) from None
    try:
        _refuse_others(folder, who)
        if not folder.run.is_file():
            write_json(folder.run, describe(who))
        if not folder.spec.is_file():
            write_text(folder.spec, dump(loaded.tree))
        yield
    finally:
        lock.release()


def describe(who: Identity) -> dict[str, object]:
    """What `run.json` says: nothing in it depends on the command that started the run."""
    return {
        "spec_hash": who.spec,
        "architecture_hash": who.architecture,
        "versions": {"python": platform.python_version(), **{p: version_of(p) for p in PACKAGES}},
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def made_on(folder: RunFolder) -> dict[str, str]:
    """The machine and the versions that a run was begun with."""
    found = json.loads(folder.run.read_text(encoding="utf-8"))
    versions: dict[str, str] = found["versions"]
    return {name: found[name] for name in ("platform", "machine")} | versions


def write_result(folder: RunFolder, result: TrainResult) -> None:
    """Mark the run as finished."""
    write_json(folder.result, result.as_json())


def append_metrics(folder: RunFolder, record: dict[str, object]) -> None:
    """Add the line of one epoch."""
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())  # as the checkpoint is, which is written after it


def keep_metrics(folder: RunFolder, epochs: int) -> None:
    """Leave the lines of the first `epochs` alone: what follows was lost with a killed process."""
    lines = []
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    with replacing(folder.metrics) as partial:
        kept = (line for line in lines if _epoch_of(line) <= epochs)
        partial.write_text("".join(kept), encoding="utf-8")


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):  # half a line, written last
        return math.inf


def version_of(package: str) -> str:
    """Of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def _refuse_others(folder: RunFolder, who: Identity) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise _refusal(f"{folder.path} is a file", ANOTHER)
    if not folder.run.is_file():
        # A process killed at the very start leaves hidden files behind.
        entries = folder.path.iterdir() if folder.path.is_dir() else ()
        strange = sorted(e.name for e in entries if not e.name.startswith("."))
        if strange:
            raise _refusal(f"{folder.path} is no run and holds {strange[0]}", ANOTHER)
        return
    try:
        theirs = json.loads(folder.run.read_text(encoding="utf-8"))["spec_hash"]
    except (ValueError, KeyError, TypeError):
        raise _refusal(f"{folder.run} is not a run's description", NEW_ONE) from None
    if theirs != who.spec:
        differences = _differences(folder.spec, who.of)
        message = f"{folder.path} holds the run of another spec (see {folder.spec})"
        help = f"a run continues only with the spec that began it; {NEW_ONE}"
        if not differences:
            message = f"{folder.path} holds a run of this spec by another version of archspec"
            help = f"that version goes on with it; or {ANOTHER}"
        raise _refusal(message, help, differences)


def _differences(path: Path, ours: Spec) -> str:
    """The first values in which the spec of a file is another than ours."""
    try:
        there = dict(_values(load(path).spec.model_dump(mode="json")))
    except SpecError:
        return f"{path} cannot be read"
    here = dict(_values(ours.model_dump(mode="json")))
    names = [n for n in (there | here) if there.get(n, _NONE) != here.get(n, _NONE)]
    shown = [f"{n} is {there.get(n, _NONE)} there, {here.get(n, _NONE)} here" for n in names]
    more = f"; and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return "; ".join(shown[:MOST_SHOWN]) + more


def _values(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The scalars within maps and lists, as JSON, by their dotted paths."""
    if isinstance(value, (dict, list)) and value:
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in inner:
            yield from _values(child, (*path, str(key)))
    else:
        yield ".".join(path), json.dumps(value, ensure_ascii=False)


def _refusal(message: str, help: str, note: str = "") -> SpecError:
    return SpecError([Diagnostic("E604", message, None, help, note)])
