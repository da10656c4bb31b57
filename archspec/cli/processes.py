"""Processes of `torchrun`, of which the first one speaks for all."""

from __future__ import annotations

import os
import time

PATIENCE = 5.0
"""Seconds that the first one has to tell of a mistake, before another's end makes `torchrun` end
it."""


def is_first() -> bool:
    """Whether this process is the first, or the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def leave_it_to_the_first() -> None:
    """Wait, in another process, until the first one has told of a mistake that all have met."""
    if not is_first():
        time.sleep(PATIENCE)
