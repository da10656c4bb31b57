"""archspec: reversible deep networks from a page of YAML.

    import archspec
    model = archspec.build("momrev_vit_digits")   # an nn.Module, memory-free backward

`build` takes a path, the name of a shipped spec, a dict or a `Spec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archspec.diagnostics import Diagnostic, SpecError
    from archspec.loading import Loaded, load
    from archspec.spec import Spec
    from compiler.engine import is_replaying
    from compiler.exact import RangeError
    from compiler.information import Information
    from compiler.network import Network
    from compiler.parallel import shard

__version__ = "0.1.0"
__all__ = [
    "Diagnostic",
    "Information",
    "Loaded",
    "RangeError",
    "Spec",
    "SpecError",
    "build",
    "is_replaying",
    "load",
    "shard",
]

_HOMES = {
    "Diagnostic": "archspec.diagnostics",
    "SpecError": "archspec.diagnostics",
    "Loaded": "archspec.loading",
    "load": "archspec.loading",
    "Spec": "archspec.spec",
    "Information": "compiler.information",
    "RangeError": "compiler.exact",
    "is_replaying": "compiler.engine",
    "shard": "compiler.parallel",
}


def build(
    what: str | Path | Mapping[str, object] | Spec | Loaded,
    settings: Sequence[str] = (),
    allow_modules: Sequence[str] = (),
) -> Network:
    """Compile a spec to a `torch.nn.Module`.

    `what` is a path, the name of a shipped spec, a dict, a `Spec`, or what `load` gave; `settings`
    are texts such as "stages.trunk.depth=24"; `allow_modules` are the packages whose modules the
    spec may name, which runs their code. Raises `SpecError` with every mistake found.
    """
    from archspec.loading import Loaded, load
    from compiler.network import build as build_network
    from compiler.resolve import resolve

    loaded = what if isinstance(what, Loaded) else load(what, settings, allow_modules)
    return build_network(resolve(loaded))


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported when asked for: `import archspec` must not wait for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'archspec' has no attribute {name!r}")
