"""The command line, with steps that take a tenth of a second: time for a signal to come between."""

from __future__ import annotations

import time
from typing import Any

import runners.loop
from archspec.cli import main

step = runners.loop.take_step


def slow(*arguments: Any) -> Any:
    time.sleep(0.1)
    return step(*arguments)


if __name__ == "__main__":
    runners.loop.take_step = slow
    main()
