"""A network as one readable Python file that imports torch alone."""

from compiler.emission.file import CannotEmitError, emit

__all__ = ["CannotEmitError", "emit"]
