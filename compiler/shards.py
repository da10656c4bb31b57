"""Parameters that FSDP has sharded, read outside of any call. Importing FSDP takes a second, and so
its modules and tensors are told by what they have."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class ManagedByFsdp(Protocol):
    """What FSDP adds to its units, as far as it is used here."""

    def reshard(self) -> None: ...


def to_shards(module: nn.Module) -> None:
    """Let a module's parameters be FSDP's shards, where it is one of FSDP's units. Whole ones may
    be of a lower precision, and FSDP takes their gradients after calls alone."""
    if isinstance(module, ManagedByFsdp) and "_is_fsdp_managed_module" in module.__dict__:
        module.reshard()


def whole(value: Tensor) -> Tensor:
    """What was computed from shards, with the parts of all processes; any other as it is.
    Gradients flow through it to the shards."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
