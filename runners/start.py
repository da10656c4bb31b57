"""Weights that training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from compiler.conversion.convert import weights_of

MAX_NAMES = 3


def start_from(path: Path, model: nn.Module, loaded: Loaded) -> None:
    """Give a model the weights of a file, as `archspec convert` or a run wrote it. How far training
    was is not among them. Raises `SpecError`, with the first names that do not go together."""
    problem = take(path, model)
    if problem is not None:
        help = "`archspec convert SPEC --from MODEL` writes the weights of a model for a spec"
        at = loaded.tree.where(("train", "start_from"))
        raise SpecError([Diagnostic("E606", f"{path} {problem}", at, help)])


UNREADABLE = "cannot be read"


def take(path: Path, model: nn.Module) -> str | None:
    """Load the weights of a file; or, in words that follow its path, why that cannot be."""
    ours = weights_of(model)
    try:
        with safe_open(path, "pt") as file:
            sizes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return "is not there"
    except (OSError, SafetensorError) as error:
        return f"{UNREADABLE}: {error}"
    for name, found in sizes.items():
        if name in ours and found != tuple(ours[name].shape):
            return f"has {name} as {list(found)}, and the spec as {list(ours[name].shape)}"
    missing, unexpected = safetensors.torch.load_model(model, path, strict=False)
    if lacking := [name for name in ours if name in missing]:
        return f"has no {_listed(lacking)}"
    if foreign := [name for name in unexpected if not name.endswith(".progress")]:
        return f"has {_listed(foreign)}, which the spec has not"
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
