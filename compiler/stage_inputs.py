"""What a stage is given: streams, side inputs and drawn coefficients, each checked.

This file imports torch, the engine and a stage's facts: `archspec build --emit` writes it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compiler.engine import Values
from compiler.facts import Facts


def named(streams: Sequence[Tensor], expected: Mapping[str, tuple[int, ...]]) -> Values:
    """Streams by name. Raises ValueError where they are not as many or not as large as expected."""
    if len(streams) != len(expected):
        names = ", ".join(expected)
        raise ValueError(f"expected the streams {names}, found {len(streams)} tensors")
    for (name, sizes), stream in zip(expected.items(), streams, strict=True):
        if tuple(stream.shape[1:]) != sizes:
            found, wanted = tuple(stream.shape), ", ".join(map(str, sizes))
            raise ValueError(f"stream `{name}` is (batch, {wanted}), found {found}")
    return dict(zip(expected, streams, strict=True))


def check_side(
    given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], batch: int, where: str
) -> None:
    """Raises TypeError for a side input that is missing or unknown, ValueError for its shape."""
    for name in (
        *(n for n in expected if n not in given),
        *(n for n in given if n not in expected),
    ):
        known = ", ".join(expected) or "none"
        problem = "is missing" if name in expected else "is unknown"
        raise TypeError(f"{where}: the side input `{name}` {problem}; side inputs: {known}")
    for name, sizes in expected.items():
        if not isinstance(given[name], Tensor):
            kind = type(given[name]).__name__
            raise TypeError(f"{where}: the side input `{name}` is a tensor, found {kind}")
        found = tuple(given[name].shape)
        if found != (batch, *sizes):
            wanted = (batch, *sizes)
            raise ValueError(f"{where}: the side input `{name}` is {wanted}, found {found}")


def own_side(side: Tensor, like: Tensor) -> Tensor:
    """A side input as a tensor of the stage's own, floating-point ones in the streams' dtype. It
    may be a stream too, and gradients be asked of it later or not."""
    if side.is_floating_point() and side.dtype != like.dtype:
        return side.to(like.dtype)
    # Tensors of inference mode do not tell when they are changed.
    copied = side.is_inference() and not torch.is_inference_mode_enabled()
    return side.clone() if copied else side.view_as(side)


def check_draws(draws: Sequence[Values], facts: Facts) -> None:
    """Raises ValueError for drawn coefficients that have other values than the spec says: exact
    arithmetic has been chosen for those."""
    for name, (values, evaluate) in facts.drawn.items():
        for drawn in draws:
            known = torch.tensor((*values, evaluate), dtype=drawn[name].dtype)
            if not bool(torch.isin(drawn[name], known.to(drawn[name].device)).all()):
                raise ValueError(
                    f"stage `{facts.name}`: `{name}` is drawn from {values}, or {evaluate:g} in "
                    "evaluation, and other values were given"
                )
