"""What `archspec show --resolved` says of where a value comes from."""

from __future__ import annotations

import os
from pathlib import Path

from archspec.finding import zoo
from archspec.loading import SETTING
from archspec.tree import Node


def origin(node: Node) -> str:
    """Writes behind a value the file and the line that it comes from: of a shipped spec the name
    alone, of another the path from here."""
    name, line = node.span.source.name, node.span.line + 1
    if name == SETTING:
        return f"  # {SETTING}"
    path = Path(name).resolve()
    if path.is_relative_to(zoo().resolve()):
        return f"  # {path.relative_to(zoo().resolve()).as_posix()}:{line}"
    if path.is_relative_to(Path.cwd()):
        return f"  # {os.path.relpath(path).replace(os.sep, '/')}:{line}"
    return f"  # {name}:{line}"
