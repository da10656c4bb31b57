"""Command lines as a person types them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence


def typed(arguments: Sequence[str]) -> str:
    """`archspec` with these arguments, quoted as the shells of this system take them."""
    line = ["archspec", *arguments]
    return subprocess.list2cmdline(line) if os.name == "nt" else shlex.join(line)
