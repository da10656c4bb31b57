"""Processes of `torchrun`, of which the first one speaks for all."""

from __future__ import annotations

import os
import sys
import time

PATIENCE = 5.0
"""Seconds that the first one has to tell of a mistake, before another's end makes `torchrun` end
it."""


def alone() -> bool:
    """Whether `torchrun` has not started this process."""
    return "TORCHELASTIC_RUN_ID" not in os.environ


def is_first() -> bool:
    """Whether this process is the first, or the only one."""
    return alone() or os.environ.get("RANK", "0") == "0"


def end(code: int) -> None:
    """End this process of several at once: threads of gloo that still wait for the interpreter
    abort it while it takes itself down (PyTorch's issue 190489)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_it_to_the_first() -> None:
    """Wait, in another process, until the first one has told of what all have met, if it has."""
    if not is_first():
        time.sleep(PATIENCE)
