"""Where published weights come from: torchvision, timm, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from archspec.diagnostics import nearest

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

PICKLED = (".pth", ".pt", ".bin")
WITHIN = ("state_dict", "model")
"""Where training programs put the weights within what they save."""


class SourceError(ValueError):
    """A source that there is not, or that holds no weights."""


class DownloadError(RuntimeError):
    """Weights that could not be brought here."""


@dataclass(frozen=True)
class Source:
    """Published weights by their own names, and the model that they are of, where that is known."""

    title: str
    tensors: Mapping[str, Tensor]
    model: nn.Module | None


def open_source(name: str) -> Source:
    """A file of weights (.safetensors, .pth), or a model of torchvision's or timm's, which
    downloads its weights; `vit_b_16:IMAGENET1K_SWAG_E2E_V1` names those it has several of.

    Raises `SourceError` and `DownloadError`.
    """
    if _is_file(name):
        return Source(name, read_tensors(Path(name)), None)
    try:
        model = _torchvision(name) or _timm(name)
    except (OSError, RuntimeError) as error:  # no network, no space, another hash
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DownloadError(f"the weights of {name} could not be downloaded: {reason}") from None
    return Source(name, model.state_dict(), model)


def outline(name: str) -> Mapping[str, Tensor] | None:
    """The tensors of torchvision's model of this name on the meta device, so that their names are
    known before its weights are downloaded; their sizes may be those of other weights. None for
    other sources. Raises `SourceError`."""
    from torchvision import models

    if _is_file(name) or _published(name) is None:
        return None
    with torch.device("meta"):
        model: nn.Module = models.get_model(name.partition(":")[0], weights=None)
    return model.state_dict()


def _is_file(name: str) -> bool:
    path = Path(name)
    return path.suffix in (".safetensors", *PICKLED) or path.is_file()


def _loaded(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU. Code in it is not run. Raises `SourceError`."""
    try:
        found: Any = _loaded(path)
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}") from None
    except Exception as error:  # a file of something else raises whatever its first bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(f"{path} cannot be read as a file of weights: {reason}") from None
    for key in WITHIN:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise SourceError(f"{path} holds something else than tensors by their names")
    tensors = {str(name): value for name, value in found.items()}
    _refuse_odd(path, tensors)
    return tensors


def _refuse_odd(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises `SourceError` for tensors that are no plain arrays in memory, or no real numbers."""
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise SourceError(f"{path}: `{name}` is no plain tensor with values")
        counter = value.dtype in (torch.int32, torch.int64) and value.dim() == 0  # of batch norms
        if not value.dtype.is_floating_point and not counter:
            raise SourceError(f"{path}: `{name}` has numbers of {value.dtype}, and no weights")


def _torchvision(name: str) -> nn.Module | None:
    """The model with its weights; None where torchvision has none of this name."""
    from torchvision import models

    weights = _published(name)
    if weights is None:
        return None
    model: nn.Module = models.get_model(name.partition(":")[0], weights=weights)
    return model


def _published(name: str) -> WeightsEnum | None:
    """The weights of torchvision's that a name means. Raises `SourceError` where its model has no
    such weights."""
    from torchvision import models

    kind, _, version = name.partition(":")
    if kind not in models.list_models(models):
        return None
    known = models.get_model_weights(kind)
    if version and version not in known.__members__:
        near = nearest(version, known.__members__)
        raise SourceError(f"{kind} has no weights `{version}`; {near}")
    found: WeightsEnum = known[version or "DEFAULT"]
    return found


def _timm(name: str) -> nn.Module:
    """The model with its weights. Raises `SourceError` where there is none."""
    from torchvision import models

    try:
        import timm
    except ImportError:
        known = [n for n in models.list_models(models) if n.startswith(("vit_", "resnet"))]
        message = f"torchvision has no model `{name}`, and timm, which may, is not installed"
        raise SourceError(f"{message}; {nearest(name, known)}") from None
    if not timm.is_model(name):
        known = timm.list_models("vit_*") + models.list_models(models)
        near = nearest(name, known).partition("  ")[0]
        raise SourceError(f"neither torchvision nor timm has a model `{name}`; {near}")
    model: nn.Module = timm.create_model(name, pretrained=True)
    return model
