"""A function called again as it was in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from compiler.engine.contexts import marked_as_replay
from compiler.engine.errors import CHANGED, ReplayError
from compiler.engine.handles import Group
from compiler.engine.modules import Substituted, contents, needing_grad, set_training, swapping


@contextmanager
def as_recorded(function: nn.Module, group: Group, kept: set[int]) -> Iterator[nn.Module]:
    """The function as it was in the forward pass: parameters, buffers, modes, random numbers."""
    module = group.module
    assert module is not None
    with swapping:
        parameters, buffers, training = contents(function)
    if module.has_changed():
        raise ReplayError(CHANGED)
    tensors = [*module.parameters, *module.uncounted()]
    kept.update(id(tensor) for tensor in tensors)
    same = [*map(id, (*parameters, *buffers))] == [*map(id, tensors)]
    with ExitStack() as stack:
        stack.enter_context(needing_grad(module.parameters, module.needs_grad))
        if training != module.training:
            stack.callback(set_training, function, training)
            set_training(function, module.training)
        if group.drawn is not None:
            stack.enter_context(group.drawn.again())
        stack.enter_context(marked_as_replay())
        yield function if same else Substituted(function, tensors)
