"""The arms of a study: its specs, each with the settings of a sweep, ready to be trained."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from archspec.diagnostics import Diagnostic, Source, Span, SpecError, nearest
from archspec.loading import SETTING, Loaded, load, setting_tree
from archspec.study import MAX_ARMS, Entrant, Study
from compiler.resolve import resolve

NOT_REVERSIBLE = re.compile(r"E3\d\d$")
"""The errors of programs that have no usable inverse."""


@dataclass(frozen=True)
class Sweep:
    """Values of one setting, all of which are tried."""

    path: str
    values: tuple[str, ...]
    text: str
    """As it was typed."""

    def where(self, value: str) -> Span:
        """The place of a value in the text."""
        found = re.search(rf"[=,]\s*({re.escape(value)})\s*(?:,|$)", self.text)
        start, end = found.span(1) if found else (0, len(self.text))
        return Span(Source("--sweep", self.text), 0, start, end)


@dataclass(frozen=True)
class Swept:
    """One value of a sweep at one place of a spec."""

    sweep: Sweep
    place: str
    value: str

    @property
    def setting(self) -> str:
        return f"{self.place}={self.value}"

    def as_typed(self, error: Diagnostic) -> Diagnostic:
        """An error that stands in this setting, which nobody has typed, where the sweep was."""
        if error.span is None or error.span.source != Source(SETTING, self.setting):
            return error
        span = self.sweep.where(self.value)
        if error.span.column < len(self.place):
            shift = len(self.place) - len(self.sweep.path)
            span = replace(
                span, column=error.span.column - shift, end_column=error.span.end_column - shift
            )
        return replace(error, span=span)


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
        return file_name(self.label)

    def seeded(self, seed: int) -> Loaded:
        """The spec with another seed."""
        return load(self.entrant.spec, (*self.settings, f"train.seed={seed}"), self.loaded.packages)


def file_name(label: str) -> str:
    """A label as every file system takes it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")


def parse_sweep(text: str) -> Sweep:
    """`path=value,value,…`. Raises `SpecError`. Commas in brackets do not part values."""
    text = text.strip()
    path, equals, values = text.partition("=")
    parts = tuple(part.strip() for part in re.split(r",(?![^\[{]*[\]}])", values))
    if not equals or not path.strip() or not all(parts):
        help = "for example: --sweep constants.gamma=0.5,0.9"
        message = f"`{text}` is not of the form path.to.key=value,value"
        raise SpecError([Diagnostic("E503", message, None, help)])
    return Sweep(path.strip(), parts, text)


def open_arms(
    study: Study, sweeps: Sequence[Sweep] = (), allow_modules: Sequence[str] = ()
) -> tuple[Arm, ...]:
    """Every spec of a study with every combination of a sweep's values. Raises `SpecError`."""
    arms = [arm for entrant in study.entrants for arm in _arms_of(entrant, sweeps, allow_modules)]
    _check_swept(sweeps, arms)
    if len(arms) > MAX_ARMS:
        raise SpecError([Diagnostic("E503", f"{len(arms)} networks; at most {MAX_ARMS}")])
    for one, other in itertools.combinations(arms, 2):
        if one.folder == other.folder:
            raise SpecError([_of_one_name(one, other)])
    return tuple(arms)


def _of_one_name(one: Arm, other: Arm) -> Diagnostic:
    message = f"two networks of the study would both be called {one.folder}"
    help = "each value of a sweep is given once"
    if one.entrant is not other.entrant:
        specs = f"specs: {{one: {one.entrant.spec}, two: {other.entrant.spec}}}"
        help = f"a study file gives each a label of its own, as in `{specs}` (docs/compare.md)"
    return Diagnostic("E503", message, None, help)


def baseline_of(study: Study, arms: Sequence[Arm]) -> Arm:
    """The arm that others are measured against. Raises `SpecError`."""
    wanted = study.baseline or arms[0].label
    for arm in arms:
        if wanted in (arm.label, arm.entrant.label):
            return arm
    help = nearest(wanted, [arm.label for arm in arms])
    raise SpecError([Diagnostic("E503", f"there is no `{wanted}` to compare with", None, help)])


def _arms_of(entrant: Entrant, sweeps: Sequence[Sweep], allow_modules: Sequence[str]) -> list[Arm]:
    try:
        return list(_swept(entrant, sweeps, allow_modules))
    except SpecError as error:
        raise SpecError(map(entrant.as_written, error.diagnostics)) from None


def _swept(
    entrant: Entrant, sweeps: Sequence[Sweep], allow_modules: Sequence[str]
) -> Iterator[Arm]:
    """A spec that has nothing to sweep is one arm."""
    plain = load(entrant.spec, entrant.settings, allow_modules)
    had = [sweep for sweep in sweeps if _places(plain, sweep.path)]
    for values in itertools.product(*(sweep.values for sweep in had)):
        chosen = list(zip(had, values, strict=True))
        swept = [Swept(s, place, value) for s, value in chosen for place in _places(plain, s.path)]
        named = [f"{sweep.path.rpartition('.')[2]}={value}" for sweep, value in chosen]
        label = " ".join((entrant.label, *named))
        settings = (*entrant.settings, *(one.setting for one in swept))
        try:
            arm = _trainable(label, entrant, settings, allow_modules)
        except SpecError as error:
            raise SpecError(_as_typed(one, swept) for one in error.diagnostics) from None
        yield arm


def _as_typed(error: Diagnostic, swept: Sequence[Swept]) -> Diagnostic:
    for one in swept:
        error = one.as_typed(error)
    return error


def _places(loaded: Loaded, path: str) -> list[str]:
    """The paths in a spec that a sweep's path means: `constants.gamma` is that of every stage."""
    if not path.startswith("constants."):
        head = path.split(".")
        known = head[0] in type(loaded.spec).model_fields
        if head[0] == "stages":
            known = len(head) > 1 and head[1] in loaded.spec.stages
        return [path] if known else []
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
            span = Span(Source("--sweep", sweep.text), 0, 0, len(sweep.path))
            raise SpecError([Diagnostic("E503", message, span, _sweepable(sweep, arms))])


def _sweepable(sweep: Sweep, arms: Sequence[Arm]) -> str:
    """A help text with what could have been meant."""
    specs = [arm.loaded.spec for arm in arms]
    first, _, name = sweep.path.partition(".")
    if first == "constants":
        known = {n for spec in specs for stage in spec.stages.values() for n in stage.constants}
        return nearest(name, known) or "they have no constants"
    if first == "stages":
        return nearest(name.split(".")[0], {name for spec in specs for name in spec.stages})
    return nearest(first, ["constants", *type(specs[0]).model_fields])


def _trainable(
    label: str, entrant: Entrant, settings: tuple[str, ...], allow_modules: Sequence[str]
) -> Arm:
    """The arm; where a setting leaves no inverse (gamma 0, say), with checkpoints instead."""
    _refuse_seeds(settings)
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


def _refuse_seeds(settings: Sequence[str]) -> None:
    """Each run sets its seed last, so that another would be overruled without a word."""
    for setting in settings:
        recipe = setting_tree(setting).map.get("train")
        if recipe is not None and "seed" in recipe.map:
            message = "a comparison has seeds of its own: each network is trained with all of them"
            help = "`--seeds 5`, or `seeds: 5` in a study, trains with the seeds 0 to 4"
            raise SpecError([Diagnostic("E503", message, recipe.keys["seed"], help)])
