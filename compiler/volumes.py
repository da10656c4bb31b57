"""Arithmetic of volumes, which only derived programs do (`compiler.determinant`)."""

from __future__ import annotations

import torch
from torch import Tensor


def log_abs(value: Tensor) -> Tensor:
    """The logarithm of the absolute value."""
    return torch.log(torch.abs(value))


def sum_over(value: Tensor | float, stream: Tensor) -> Tensor:
    """The sum over the elements of each sample of a stream (B, …) of a value that goes with it:
    (B, 1)."""
    if not isinstance(value, Tensor):
        # Not by `len`, which torch.export takes for a number.
        return stream.new_full((stream.shape[0], 1), value * stream.shape[1:].numel())
    return value.expand_as(stream).flatten(1).sum(1, keepdim=True)
