"""Modules of the user's own in a spec: found by name, only in packages allowed from outside it.

Importing a module runs its code, and a spec may come from a stranger. So a spec can name no module
by itself: the command line, or the caller of `build`, says which packages are meant.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from archspec.diagnostics import nearest
from archspec.layers import UserModule
from archspec.shapes import Shape

if TYPE_CHECKING:
    from torch import nn


class UserModuleError(ValueError):
    """A module that cannot be used; the message says why."""


def is_allowed(name: str, packages: Collection[str]) -> bool:
    """Whether a dotted name lies in one of the packages."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def find_class(name: str, packages: Collection[str]) -> type[nn.Module]:
    """The class of a dotted name. What was found is checked, and not its name alone: an allowed
    package does not lend out the classes of another. Raises `UserModuleError`."""
    from torch import nn

    where, _, attribute = name.rpartition(".")
    if not is_allowed(where, packages):
        raise UserModuleError(f"`{name}` is not in an allowed package")
    try:
        home = import_module(where)
        found = getattr(home, attribute, None)
    except Exception as error:
        raise UserModuleError(f"importing `{where}` failed: {_said(error)}") from error
    if found is None:
        known = (n for n, value in vars(home).items() if _is_own_module(value, packages))
        help = nearest(attribute, known)
        raise UserModuleError(f"`{where}` has no class `{attribute}`" + (help and f"; {help}"))
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise UserModuleError(f"`{name}` is not a class of torch.nn.Module")
    if not is_allowed(found.__module__, packages):
        real = f"{found.__module__}.{found.__qualname__}"
        raise UserModuleError(f"`{name}` is {real}, which is not in an allowed package")
    return found


def _is_own_module(value: object, packages: Collection[str]) -> bool:
    from torch import nn

    is_module = isinstance(value, type) and issubclass(value, nn.Module)
    return is_module and is_allowed(value.__module__, packages)


def make(layer: UserModule, packages: Collection[str]) -> nn.Module:
    """A module as the spec describes it. Raises `UserModuleError`."""
    from compiler.base_network import BaseNetwork
    from compiler.base_stage import BaseStage

    found = find_class(layer.name, packages)
    try:
        module = found(**layer.arguments)
    except Exception as error:
        raise UserModuleError(f"making `{layer.name}` failed: {_said(error)}") from error
    if any(isinstance(part, (BaseStage, BaseNetwork)) for part in module.modules()):
        raise UserModuleError(
            f"`{layer.name}` has a stage in it: stages follow one another, and hold none"
        )
    return module


def check_module(
    layer: UserModule, packages: Collection[str], before: Sequence[Shape], after: Shape
) -> None:
    """Make a module once and run it on two samples, as training would: on results of other
    operations, with a gradient. Raises `UserModuleError`."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        module = make(layer, packages).eval()
        # Copies, since torch forbids changing a leaf before anything could be said of it.
        arguments = [torch.zeros(2, *s.sizes, requires_grad=True).clone() for s in before]
        versions = [argument._version for argument in arguments]
        try:
            result = module(*arguments)
        except Exception as error:
            raise UserModuleError(f"calling `{layer.name}` failed: {_said(error)}") from error
    if [argument._version for argument in arguments] != versions:
        raise UserModuleError(
            f"`{layer.name}` edits its argument in place: others may need it as it was"
        )
    found = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if found != (2, *after.sizes):
        raise UserModuleError(
            f"`{layer.name}` gave {found} for a batch of two, and {(2, *after.sizes)} is expected; "
            "another size is declared by `out`"
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
