"""Learned coefficients of updates as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Coefficient:
    """A learned coefficient: where it starts, the range it is kept in, and whether each channel
    has its own."""

    start: float
    within: tuple[float, ...] | None = None
    per_channel: bool = False


class Coefficients(nn.Module):
    """The learned coefficients of one layer.

    Parameters are () or, per channel, (C,); `channel_shape`, (C, 1, 1) for images, is the shape in
    which they go with streams. A coefficient with a range is kept inside it by a sigmoid: its
    parameter is the logit of where in the range it stands.
    """

    def __init__(self, learned: Mapping[str, Coefficient], channel_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.learned, self.channel_shape = learned, channel_shape
        for name, constant in learned.items():
            shape = channel_shape[:1] if constant.per_channel else ()
            # Set directly: a coefficient may bear the name of one of Module's own methods.
            self._parameters[name] = nn.Parameter(torch.full(shape, _to_parameter(constant)))

    def evaluators(self) -> dict[str, Callable[[], Tensor]]:
        """For each coefficient, a function that computes its value from its parameter."""
        return {name: self._evaluator(name) for name in self.learned}

    def value(self, name: str) -> Tensor:
        """The value of one coefficient."""
        return self._evaluator(name)()

    def _evaluator(self, name: str) -> Callable[[], Tensor]:
        constant, parameter = self.learned[name], self._parameters[name]
        shape = self.channel_shape if constant.per_channel else ()
        assert parameter is not None  # held here: a replay may run outside `functional_call`

        def evaluate() -> Tensor:
            value = parameter.view(shape)
            if constant.within is None:
                return value
            low, high = constant.within
            # Where the ends are far apart in size, rounding may leave the range.
            return torch.clamp(low + (high - low) * torch.sigmoid(value), low, high)

        return evaluate

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return ", ".join(f"{name} starts at {c.start:g}" for name, c in self.learned.items())

    def leaves(self) -> dict[str, Tensor]:
        """The parameters themselves, by the names of their coefficients."""
        return {name: p for name, p in self._parameters.items() if p is not None}


def _to_parameter(constant: Coefficient) -> float:
    if constant.within is None:
        return constant.start
    low, high = constant.within
    place = (constant.start - low) / (high - low)
    return math.log(place / (1 - place))
