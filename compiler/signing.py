"""Marks on files that archspec writes, by which it knows later that nobody has changed them."""

from __future__ import annotations

import hashlib
import re

from archspec import __version__

_MARK = re.compile(r"^Written by archspec \S+ \(sha256 ([0-9a-f]{16})\)", re.MULTILINE)
_UNSIGNED = "0" * 16
MARK = f"Written by archspec {__version__} (sha256 {_UNSIGNED})"
"""What stands at the beginning of a line in a text that is to be signed."""


def signed(text: str) -> str:
    """A text with its digest in the first `MARK`."""
    return text.replace(f"(sha256 {_UNSIGNED})", f"(sha256 {_digest(text)})", 1)


def signed_again(text: str) -> str:
    """A text that was signed, and then changed, with the digest that it has now."""
    mark = _MARK.search(text[:5000])
    assert mark is not None
    return signed(text.replace(mark[1], _UNSIGNED, 1))


def is_as_written(text: str) -> bool:
    """Whether a file's text is one that `signed` gave, and nobody has changed since."""
    mark = _MARK.search(text[:5000])
    return mark is not None and _digest(text.replace(mark[1], _UNSIGNED, 1)) == mark[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
