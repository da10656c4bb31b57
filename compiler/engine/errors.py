"""What is refused because a gradient would be wrong."""

from __future__ import annotations


class ReplayError(RuntimeError):
    """What would be a wrong gradient, refused."""


CHANGED = (
    "a parameter, buffer or input of a stage was changed in place between the forward and the "
    "backward pass, which computes activations again from it; step the optimizer after backward"
)


OTHER_REPLAY = (
    "a residual function did not do the same in the replay as in the forward pass: it saved other "
    "tensors. It must not depend on anything but its arguments, parameters, buffers and the random "
    "generators; a context such as sdpa_kernel has to cover the backward pass too"
)
