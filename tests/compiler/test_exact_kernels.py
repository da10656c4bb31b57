"""Kernels compiled and fused give the bits that they give uncompiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler import kernels

BACKEND = "inductor" if shutil.which("g++") else "aot_eager"
UNIT = 2.0**-14
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


def random(*shape: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


VALUE = kernels.rounded(random(3, 40, 17, size=50.0), UNIT)
CHANGE = random(3, 40, 17) + random(3, 40, 17).exp()
WORD = (random(3, 40, 17, size=2.0**40).abs()).double().floor()
SCALES: dict[str, Any] = {
    "number": 0.95,
    "sample": torch.tensor([0.7, -1.3, -0.2])[:, None, None],
    "element": random(3, 40, 17).tanh().exp() * random(3, 40, 17).sign(),
}


def signs(scale: Any) -> Any:
    return torch.sign(scale) if isinstance(scale, Tensor) else 1.0


def sizes(scale: Any) -> Any:
    return scale.abs().double() if isinstance(scale, Tensor) else scale


def after(scale: Any) -> tuple[Tensor, Tensor]:
    """A stream and a word after an update, for the way back."""
    return kernels.monotone_keeping(VALUE, signs(scale), sizes(scale), CHANGE, WORD, UNIT)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "unit_forward": (kernels.unit_forward, (VALUE, -1.0, CHANGE, UNIT)),
    "unit_backward": (kernels.unit_backward, (VALUE, 1.0, CHANGE, UNIT)),
    "parity_forward": (kernels.parity_forward, (VALUE, signs(SCALES["sample"]), CHANGE, 1, UNIT)),
    "parity_backward": (
        kernels.parity_backward,
        (VALUE, 1.0, CHANGE, (WORD % 4).to(torch.uint8), 2, UNIT),
    ),
    "remainder_forward": (kernels.remainder_forward, (VALUE, 1.0, CHANGE, WORD, 9, 10, UNIT)),
    "remainder_backward": (kernels.remainder_backward, (VALUE, -1.0, CHANGE, WORD, 3, 4, UNIT)),
    "gauge_forward": (kernels.gauge_forward, (WORD, 0.81, CHANGE, UNIT)),
    "gauge_backward": (kernels.gauge_backward, (WORD, 0.729, 0.81, CHANGE, UNIT)),
    **{
        f"monotone_{way}-{name}": (
            getattr(kernels, f"monotone_{way}"),
            (value, signs(scale), sizes(scale), CHANGE, *word, UNIT),
        )
        for name, scale in SCALES.items()
        for way, value, *word in (
            ("forward", VALUE),
            ("keeping", VALUE, WORD),
            ("backward", *after(scale)),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_kernels(name: str) -> None:
    torch._dynamo.reset()
    kernel, arguments = CASES[name]
    wanted = kernel(*arguments)
    found = torch.compile(kernel, dynamic=True, backend=BACKEND)(*arguments)
    pairs = [(found, wanted)] if isinstance(wanted, Tensor) else zip(found, wanted, strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once a kernel."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "_compiled", lambda kernel: broken)
    monkeypatch.setattr(kernels, "_can_fuse", lambda value: True)
    monkeypatch.setattr(kernels, "_unfused", set())
    with pytest.warns(UserWarning, match="not compiled, and so slower: unit_forward: no compiler"):
        found = kernels.fused(kernels.unit_forward, VALUE, 1.0, CHANGE, UNIT)
    assert torch.equal(found, kernels.unit_forward(VALUE, 1.0, CHANGE, UNIT))
    assert torch.equal(kernels.fused(kernels.unit_forward, VALUE, 1.0, CHANGE, UNIT), found)
