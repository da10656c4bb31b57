"""What is at work around a stage: a replay, a call, torch.func, torch.compile, a CUDA graph."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch.autograd import forward_ad

from compiler.engine.errors import ReplayError
from compiler.engine.steps import Values

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


_replaying = threading.local()


def is_replaying() -> bool:
    """True inside a residual function that runs a second time, for the backward pass."""
    return getattr(_replaying, "now", False)


@contextmanager
def marked_as_replay() -> Iterator[None]:
    """Marks that a residual function runs a second time."""
    outer = is_replaying()
    try:
        _replaying.now = True
        yield
    finally:
        _replaying.now = outer


_calls = threading.local()


@contextmanager
def inside_a_call() -> Iterator[None]:
    """Marks that a residual function runs, so that a stage inside it is noticed."""
    outer = getattr(_calls, "running", False)
    try:
        _calls.running = True
        yield
    finally:
        _calls.running = outer


def is_transformed() -> bool:
    """Whether torch.func, or forward-mode differentiation, is at work: neither lets saved tensors
    be replaced, so that a stage has to store them."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_refused(values: Values) -> None:
    """Raises RuntimeError where a stage cannot compute its activations again."""
    if getattr(_calls, "running", False):
        raise ReplayError(
            "a stage runs inside a residual function of another stage, and would be rebuilt inside "
            "a replay: let stages follow one another, or set_backward('store') for the inner one"
        )
    device = next(iter(values.values())).device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ReplayError(
            "a CUDA graph cannot hold a stage that computes activations again: replays set the "
            "random generators, which a capture forbids; set_backward('store') for it"
        )


def uncompiled(function: AnyFunction) -> AnyFunction:
    """`function`, left alone by torch.compile: it sets hooks and generators, and reads versions.
    Compiled modules that it calls stay compiled. `torch.compiler.disable` takes a second to import,
    and so waits until something is compiled."""
    disabled: list[AnyFunction] = []

    @functools.wraps(function)
    def either(*arguments: Any, **settings: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*arguments, **settings)
        if not disabled:
            reason = (
                "a stage sets hooks on saved tensors, and reads values, neither of which compiles"
            )
            hidden = torch.compiler.disable(function, reason=reason)  # type: ignore[no-untyped-call]
            disabled.append(hidden)
        return disabled[0](*arguments, **settings)

    return cast(AnyFunction, either)
