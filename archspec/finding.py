"""The files that names mean: specs, couplings and recipes, beside others or shipped."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from archspec.diagnostics import Diagnostic, Span, SpecError, nearest
from archspec.spec import FILE_NAME

MOST_NAMES = 30
"""So many are named where one is not found."""


def zoo() -> Path:
    """The folder of the shipped specs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "specs"
    return installed if installed.is_dir() else package.parent / "specs"


def find(name: str, folder: Path, at: Span | None, kind: str = "") -> Path:
    """The file that `name` means: a path, a name beside `folder`, or a shipped one.

    `kind` is a subfolder to look in (`couplings`). Raises `SpecError`, with `at` as its place;
    where there is a place, `name` is a bare name.
    """
    shipped = zoo() / kind
    given = Path(name)
    if at is None and (given.suffix in (".yaml", ".yml") or _is_file(given)):
        if _is_file(given):
            return given
        help = near(given.stem, given.parent, shipped)
        raise SpecError([Diagnostic("E501", f"there is no file {name}", at, help)])
    asking, found_itself = Path(at.source.name).resolve() if at else None, False
    for place in (folder / kind, folder, shipped):
        candidate = place / f"{name}.yaml"
        allowed = at is None or re.fullmatch(FILE_NAME, name)
        if allowed and _is_file(candidate):
            # A spec may extend the shipped one of its own name.
            if candidate.resolve() != asking:
                return candidate
            found_itself = True
    if found_itself and not kind:
        message = f"`extends` goes round in a circle: {name} → {name}"
        raise SpecError([Diagnostic("E502", message, at)])
    if at is None and (coupling := coupling_file(name)):
        message = f"`{name}` is a coupling, and not a spec: {coupling}"
        help = f"a stage has it by `coupling: {name}`; `archspec show {name}` prints it"
        raise SpecError([Diagnostic("E501", message, at, help)])
    what = kind.removesuffix("s") or "spec"
    help = near(name, folder / kind, shipped)
    raise SpecError([Diagnostic("E501", f"there is no {what} `{name}`", at, help)])


def coupling_file(name: str) -> Path | None:
    """The file of a coupling of this name: below this folder, or a shipped one."""
    if not re.fullmatch(FILE_NAME, name):
        return None
    folders = (Path("couplings"), zoo() / "couplings")
    return next((f / f"{name}.yaml" for f in folders if _is_file(f / f"{name}.yaml")), None)


def shadowed(name: str, kind: str = "") -> Path | None:
    """The file of this folder that a name means, where there is a shipped spec of the same name, or
    with `kind` a shipped coupling."""
    shipped = zoo() / kind / f"{name}.yaml"
    if not re.fullmatch(FILE_NAME, name) or not _is_file(shipped):
        return None
    for here in (Path(kind, name), Path(kind, f"{name}.yaml")):
        if _is_file(here) and here.resolve() != shipped.resolve():
            return here
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null
        return False


def near(name: str, *folders: Path) -> str:
    """The help that offers the nearest YAML files of folders, of many not all of them."""
    names = {p.stem for folder in folders for p in folder.glob("*.yaml") if _is_file(p)}
    if len(names) <= MOST_NAMES:
        return nearest(name, names)
    close = difflib.get_close_matches(name, sorted(names), n=4, cutoff=0.6)
    offered = f"did you mean `{close[0]}`?  " if close else ""
    others = f"near it: {', '.join(close[1:])}; " if close[1:] else ""
    return f"{offered}{others}`archspec list` names those that ship"
