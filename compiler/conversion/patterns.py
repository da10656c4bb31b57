"""Tables of names: how a module of one network is called in another."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

_FIELD = re.compile(r"\\\{(\w+)\\\}")


def renamed(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """Those of `names` that a pattern of the table matches → what the table makes of them.

    In a pattern `{i}` stands for one part of a name, between two dots or less, and its text goes
    where the other pattern has `{i}`.
    """
    patterns = [(_compiled(theirs), ours) for theirs, ours in table.items()]
    found = {}
    for name in names:
        for pattern, ours in patterns:
            if match := pattern.fullmatch(name):
                found[name] = ours.format(**match.groupdict())
                break
    return found


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_FIELD.sub(r"(?P<\1>\\w+)", re.escape(pattern)))


_UNIT = re.compile(
    r"(?P<stage>stages\.\w+)\.layers\.(?P<layer>\d+)\.(?P<function>\w+)\.(?P<rest>.+)"
)
_IN_FIRST_UNIT: Mapping[str, str] = {"F": "residual.body", "G": "residual_2.body"}
"""Where the start function `B` of the coupling `bdia_transformer` has F and G."""


def placed(name: str, ours: Collection[str]) -> str:
    """Where a network with the names `ours` has what the plain one calls `name`: at the same name,
    unless its streams start with the first unit, x = B(input), so that the layers are those after
    it (Zhang et al. 2025, BDIA)."""
    unit = _UNIT.fullmatch(name)
    if unit is None:
        return name
    start = f"{unit['stage']}.starts.B."
    if not any(each.startswith(start) for each in ours):
        return name
    if unit["layer"] == "0":
        within = _IN_FIRST_UNIT.get(unit["function"], unit["function"])
        return f"{start}{within}.{unit['rest']}"
    layer = int(unit["layer"]) - 1
    return f"{unit['stage']}.layers.{layer}.{unit['function']}.{unit['rest']}"
