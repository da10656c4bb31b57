"""What specs say by the papers that they cite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archspec.papers import PAPERS

if TYPE_CHECKING:
    from archspec.spec import Spec


def reference(key: str) -> str:
    """The paper of a citation key, in one line; the key itself where it is not known."""
    return PAPERS[key].reference if key in PAPERS else key


def family_of(spec: Spec) -> str | None:
    """What a spec's kind of network is called: by itself, or else by the first paper that it
    cites."""
    known = [PAPERS[key].system for key in spec.cite if key in PAPERS]
    return spec.family or (known[0] if known else None)
