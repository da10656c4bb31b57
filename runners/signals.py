"""Signals that ask a run to end: it ends after the step that it is in, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Windows alone has the last, and ends a console's processes with it."""

ONCE = 2.0
"""Seconds in which several signals are one: a terminal and a scheduler signal all processes, and
`torchrun` passes on to its own what it has heard itself."""


@dataclass
class Asked:
    """Whether a signal has asked this process to end, and which."""

    by: int = 0
    at: float = 0.0
    """By the monotonic clock."""


@contextmanager
def asked_to_end() -> Iterator[Asked]:
    """Within the block a first signal is noted, and later an impatient Ctrl-C raises
    `KeyboardInterrupt`. Threads other than the main one hear no signals: there nothing changes."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if not asked.by:
            asked.by, asked.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - asked.at > ONCE:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    # One that is ignored, as with nohup, stays so.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None: set by other than Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
