"""Sparse codes to be found: a dictionary, and measurements, made in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from archspec.data import SparseCodes
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.spec import FeaturesInput
from archspec.training import SparseCode
from runners.lasso import Lasso
from runners.randomness import Purpose, generator


def open_lasso(loaded: Loaded) -> Lasso:
    """The problem that a spec's task and data pose, in float64. Raises `SpecError` where they do
    not go together."""
    spec, where = loaded.spec, loaded.tree.where
    if not isinstance(spec.data, SparseCodes):
        found = f", not from {spec.data.kind}" if spec.data else ""
        message = f"a sparse code is learned from the data set sparse_codes{found}"
        raise SpecError([Diagnostic("E602", message, where(("data",)))])
    if not isinstance(spec.task, SparseCode):
        message = "the data set sparse_codes has no classes; its task is sparse_code"
        raise SpecError([Diagnostic("E602", message, where(("task",)))])
    if not isinstance(spec.input, FeaturesInput):
        message = f"the data set sparse_codes holds features, and the input is {spec.input.shape}"
        raise SpecError([Diagnostic("E602", message, where(("input",)))])
    (measurements,) = spec.input.sizes
    return Lasso(dictionary(spec.data, measurements, spec.task.codes), spec.task.penalty)


def dictionary(entry: SparseCodes, measurements: int, codes: int) -> Tensor:
    """D (m, n) in float64: a random matrix with columns of norm 1."""
    drawn = _normal((measurements, codes), entry, "dictionary")
    norms: Tensor = drawn.norm(dim=0)
    return drawn / norms


def measured(entry: SparseCodes, dictionary: Tensor, count: int, part: int) -> Tensor:
    """y = D z + noise, (count, m) in float64; other samples for each number `part`."""
    codes, size = dictionary.shape[1], len(dictionary)
    there = torch.rand(count, codes, generator=generator(entry.problem, "support", part))
    drawn = _normal((count, codes), entry, "codes", part) * (there < entry.density)
    return drawn @ dictionary.T + entry.noise * _normal((count, size), entry, "noise", part)


def _normal(
    sizes: tuple[int, ...], entry: SparseCodes, purpose: Purpose, number: int = 0
) -> Tensor:
    source = generator(entry.problem, purpose, number)
    return torch.randn(sizes, generator=source, dtype=torch.float64)
