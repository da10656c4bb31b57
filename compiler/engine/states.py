"""The states that a call is computed in, beside its function: random generators and autocast."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.engine.errors import ReplayError


class RandomState:
    """The states of the random generators, of the CPU and of a device."""

    __slots__ = ("device", "states")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = {"cpu": torch.get_rng_state()}
        if device.type not in ("cpu", "meta"):
            self.states[device.type] = torch.get_device_module(device).get_rng_state(device)

    def has_moved(self) -> bool:
        """Whether anything was drawn since."""
        return self.drawn() is not None

    def drawn(self) -> Drawn | None:
        """What was drawn since, if anything."""
        now = RandomState(self.device).states
        moved = [kind for kind in now if _raw(self.states[kind]) != _raw(now[kind])]
        before, after = ({kind: states[kind] for kind in moved} for states in (self.states, now))
        return Drawn(self.device, before, after) if moved else None


@dataclass(frozen=True)
class Drawn:
    """The generators that a call drew from: their states before it and after it."""

    device: torch.device
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let the same numbers be drawn once more; then the generators stand where they stood."""
        now = RandomState(self.device)
        try:
            self._restore(self.before)
            yield
            then = RandomState(self.device).states
            for kind, after in self.after.items():
                # One that did not move has nothing to do with the call: another thread drew from
                # it during the forward pass.
                if _raw(then[kind]) not in (_raw(after), _raw(self.before[kind])):
                    raise ReplayError(_OTHER_DRAWS)
        finally:
            self._restore({kind: now.states[kind] for kind in self.before})

    def _restore(self, states: Mapping[str, Tensor]) -> None:
        for kind, state in states.items():
            if kind == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(self.device).set_rng_state(state, self.device)


_OTHER_DRAWS = (
    "a residual function drew other random numbers in the replay than in the forward pass. If "
    "another thread draws from the same generator, nothing can be drawn again: use a process for "
    "each, or backward: store"
)


def _raw(state: Tensor) -> bytes:
    """The bytes of a generator's state, read past any dispatch mode (fake tensors, say)."""
    return ctypes.string_at(state.data_ptr(), state.numel())


class AutocastState:
    """The autocast settings for the CPU and for a device."""

    def __init__(self, device: torch.device) -> None:
        kinds = dict.fromkeys(("cpu", device.type))  # both, where they differ
        self.settings = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        ]
        self.cache = torch.is_autocast_cache_enabled()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run with these settings."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self.settings:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cache)
                    )
            yield
