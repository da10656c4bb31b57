"""The arms of a study: its specs, each with the settings of a sweep, ready to be trained."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from archspec.diagnostics import Diagnostic, SpecError, nearest
from archspec.loading import Loaded, load
from archspec.study import MAX_ARMS, Entrant, Study
from compiler.resolve import resolve

NOT_REVERSIBLE = re.compile(r"E3\d\d$")
"""The errors of programs that have no usable inverse."""


@dataclass(frozen=True)
class Sweep:
    """Values of one setting, all of which are tried."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One spec with its settings, trained with each seed."""

    label: str
    entrant: Entrant
    settings: tuple[str, ...]
    loaded: Loaded
    """With the first seed."""
    note: str = ""
    """What was changed so that it can be trained."""

    @property
    def folder(self) -> str:
        """A name for its runs that every file system takes."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.")

    def seeded(self, seed: int) -> Loaded:
        """The spec with another seed."""
        return load(self.entrant.spec, (*self.settings, f"train.seed={seed}"), self.loaded.packages)


def parse_sweep(text: str) -> Sweep:
    """`path=value,value,…`. Raises `SpecError`. Commas in brackets do not part values."""
    path, equals, values = text.partition("=")
    parts = tuple(part.strip() for part in re.split(r",(?![^\[{]*[\]}])", values))
    if not equals or not path.strip() or not all(parts):
        help = "for example: --sweep constants.gamma=0.5,0.9"
        message = f"`{text}` is not of the form path.to.key=value,value"
        raise SpecError([Diagnostic("E503", message, None, help)])
    return Sweep(path.strip(), parts)


def open_arms(
    study: Study, sweeps: Sequence[Sweep] = (), allow_modules: Sequence[str] = ()
) -> tuple[Arm, ...]:
    """Every spec of a study with every combination of a sweep's values. Raises `SpecError`."""
    arms = [arm for entrant in study.entrants for arm in _swept(entrant, sweeps, allow_modules)]
    _check_swept(sweeps, arms)
    if len(arms) > MAX_ARMS:
        raise SpecError([Diagnostic("E503", f"{len(arms)} networks; at most {MAX_ARMS}")])
    folders = [arm.folder for arm in arms]
    for arm in arms:
        if folders.count(arm.folder) > 1:
            message = f"two networks of the study would both be called {arm.folder}"
            raise SpecError([Diagnostic("E503", message, None, "give each a label of its own")])
    return tuple(arms)


def baseline_of(study: Study, arms: Sequence[Arm]) -> Arm:
    """The arm that others are measured against. Raises `SpecError`."""
    wanted = study.baseline or arms[0].label
    for arm in arms:
        if wanted in (arm.label, arm.entrant.label):
            return arm
    help = nearest(wanted, [arm.label for arm in arms])
    raise SpecError([Diagnostic("E503", f"there is no `{wanted}` to compare with", None, help)])


def _swept(
    entrant: Entrant, sweeps: Sequence[Sweep], allow_modules: Sequence[str]
) -> Iterator[Arm]:
    """A spec that has nothing to sweep is one arm."""
    plain = load(entrant.spec, entrant.settings, allow_modules)
    had = [sweep for sweep in sweeps if _places(plain, sweep.path)]
    for values in itertools.product(*(sweep.values for sweep in had)):
        chosen = list(zip(had, values, strict=True))
        settings = [
            f"{place}={value}" for sweep, value in chosen for place in _places(plain, sweep.path)
        ]
        named = [f"{sweep.path.rpartition('.')[2]}={value}" for sweep, value in chosen]
        label = " ".join((entrant.label, *named))
        yield _trainable(label, entrant, (*entrant.settings, *settings), allow_modules)


def _places(loaded: Loaded, path: str) -> list[str]:
    """The paths in a spec that a sweep's path means: `constants.gamma` is that of every stage."""
    if not path.startswith("constants."):
        head = path.split(".")
        known = head[0] in type(loaded.spec).model_fields
        return [path] if known and (head[0] != "stages" or head[1] in loaded.spec.stages) else []
    name = path.removeprefix("constants.").partition(".")[0]
    return [
        f"stages.{stage}.{path}"
        for stage, content in loaded.spec.stages.items()
        if name in content.constants
    ]


def _check_swept(sweeps: Sequence[Sweep], arms: Sequence[Arm]) -> None:
    for sweep in sweeps:
        if not any(_places(arm.loaded, sweep.path) for arm in arms):
            message = f"none of these specs has {sweep.path}, which is swept"
            raise SpecError([Diagnostic("E503", message)])


def _trainable(
    label: str, entrant: Entrant, settings: tuple[str, ...], allow_modules: Sequence[str]
) -> Arm:
    """The arm; where a setting leaves no inverse (gamma 0, say), with checkpoints instead."""
    loaded = load(entrant.spec, (*settings, "train.seed=0"), allow_modules)
    try:
        resolve(loaded)
    except SpecError as error:
        if not all(NOT_REVERSIBLE.match(one.code) for one in error.diagnostics):
            raise
    else:
        return Arm(label, entrant, settings, loaded)
    others = tuple(f"stages.{name}.backward=checkpoint" for name in loaded.spec.stages)
    loaded = load(entrant.spec, (*settings, *others, "train.seed=0"), allow_modules)
    resolve(loaded)
    note = "checkpointed: with these settings it has no inverse"
    return Arm(label, entrant, (*settings, *others), loaded, note)
