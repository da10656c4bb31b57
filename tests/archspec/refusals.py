"""What every refused spec owes its user, shared by the tests and by `benchmarks/fuzz_specs.py`."""

from __future__ import annotations

import re

from archspec.diagnostics import SpecError


def check_error(error: SpecError) -> None:
    """Every mistake has a code and a place, and can be printed on any terminal."""
    assert error.diagnostics
    for diagnostic in error.diagnostics:
        assert re.fullmatch(r"E[1-5]\d\d", diagnostic.code)
        assert diagnostic.message
        assert diagnostic.span is not None
    text = str(error)
    text.encode()
    assert all(c.isprintable() or c in "\n\t" for c in text)
    sources = {d.span.source.text for d in error.diagnostics if d.span}
    for internal in re.findall(r"[A-Z]\w*@\d", text):  # names of calls are the compiler's own
        assert any(internal in source for source in sources)
    assert len(text) < 200_000
