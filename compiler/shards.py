"""Parameters that FSDP has sharded, read outside of any call. Importing FSDP takes a second, and so
its modules and tensors are told by what they have."""

from __future__ import annotations

from torch import Tensor, nn


def to_shards(module: nn.Module) -> None:
    """Let a module's parameters be FSDP's shards, where it is one of FSDP's units. Whole ones may
    be of a lower precision, and FSDP takes their gradients after calls alone."""
    if "_is_fsdp_managed_module" in module.__dict__ and hasattr(module, "reshard"):
        module.reshard()


def whole(value: Tensor) -> Tensor:
    """What was computed from shards, with the parts of all processes; any other as it is.
    Gradients flow through it to the shards."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
