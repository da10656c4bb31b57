"""Random numbers that a seed and a purpose determine, and the state of the global generators."""

from __future__ import annotations

from typing import Literal, get_args

import numpy
import torch
from torch import Tensor

Purpose = Literal[
    "split", "order", "dictionary", "support", "codes", "noise", "reading", "process", "watch"
]


def derived_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A 32-bit seed of its own for each purpose and numbers.

    Sums or shifts of the two would not do: torch's CPU generator reads 32 bits of a seed alone.
    """
    entropy = (seed, get_args(Purpose).index(purpose), *(numbers or (0,)))
    return int(numpy.random.SeedSequence(entropy).generate_state(1)[0])


def generator(seed: int, purpose: Purpose, number: int = 0) -> torch.Generator:
    """A generator apart from the global one."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, number))


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators in use. Nothing draws from Python's or NumPy's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the global generators back; a run that has moved to a GPU keeps that one's as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
