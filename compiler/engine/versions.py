"""Tensors that are kept as they are, and must not be changed in place."""

from __future__ import annotations

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    try:
        return tensor._version
    except RuntimeError:  # which is quicker than to ask each of them
        return 0


class Kept:
    """A saved tensor that is a parameter, buffer or draw: kept itself, with its version."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, version_of(tensor)

    def has_changed(self) -> bool:
        """Whether it was changed in place since."""
        return version_of(self.tensor) != self.version
