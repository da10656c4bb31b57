"""Classes as networks that make images are told of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

NO_LABEL = -1
"""Of a sample whose class is not said."""


def label_of(labels: Tensor, classes: int | None) -> dict[str, Tensor]:
    """The side input `label` by its name: labels (B) as vectors (B, classes) of zeros with a one,
    or with none for `NO_LABEL`. Nothing without classes."""
    if not classes:
        return {}
    known = F.one_hot(labels.clamp(min=0), classes)
    return {"label": known.float() * (labels != NO_LABEL).float()[:, None]}
