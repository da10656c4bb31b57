"""Sizes of memory, as they are written: 6GiB, 512 MB."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_FORM = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]?)(i?)B", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """The bytes of a size. Raises ValueError."""
    found = _FORM.fullmatch(text.strip())
    size = 0
    if found is not None:
        step = 1024 if found[3] else 1000
        size = int(float(found[1]) * step ** " KMGT".index(found[2].upper() or " "))
    if size == 0:
        raise ValueError(f"`{text}` is no size of memory: write 6GiB, or 512MiB")
    return size


def size_text(size: int) -> str:
    """Bytes, in KiB, MiB or GiB, by three digits or more."""
    unit = next((n for n, name in enumerate(UNITS) if size >= 1024 ** (3 - n)), len(UNITS) - 1)
    number = size / 1024 ** (3 - unit)
    return f"{number:,.0f} {UNITS[unit]}" if number >= 100 else f"{number:.3g} {UNITS[unit]}"


UNITS = ("GiB", "MiB", "KiB")


def _checked(text: str) -> str:
    bytes_of(text)
    return text


Size = Annotated[str, AfterValidator(_checked)]
"""Of memory, as it is written."""
