"""A network as one readable Python file that imports torch alone."""

from compiler.emission.file import CannotEmitError, emit, is_as_emitted, left_out

__all__ = ["CannotEmitError", "emit", "is_as_emitted", "left_out"]
