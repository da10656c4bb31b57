"""Which specs are densities, and what a flow is built of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import archspec
from archspec.diagnostics import SpecError
from compiler.flow import Flow
from compiler.functions.maps import ActNorm
from compiler.memory import step_memory

COUPLING: dict[str, Any] = {
    "depth": 2,
    "streams": {"x": "chunk(input, 1, 2)", "y": "chunk(input, 2, 2)"},
    "functions": {"F": [{"conv": {}}, "tanh"], "S": [{"conv": {}}]},
    "update": ["x = exp(tanh(S(y)))*x + F(y)", "x, y = y, x"],
    "output": "concat(x, y)",
}


def spec(stage: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {
        "archspec": 1,
        "name": "small",
        "summary": "A flow for a test",
        "input": {"image": [1, 4, 4]},
        "stem": ["squeeze"],
        "stages": {"trunk": {**COUPLING, **(stage or {})}},
        "task": "density",
        **keys,
    }


def mistakes(**keys: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        archspec.build(spec(**keys))
    return [f"{each.code} {each.message}" for each in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head": [{"pool": "mean"}]}, "a density has no head"),
        ({"stem": [{"conv": {"out": 4}}]}, "`conv` has no inverse, and a density needs one"),
        (
            {"stage": {"transition": [{"conv": {"out": 4}}]}},
            "`conv` has no inverse, and a density needs one",
        ),
        ({"stage": {"output": "x + y"}}, "`x + y` cannot be undone"),
        (
            {"stage": {"streams": {"x": "input", "y": "zeros"}}},
            "the streams are more, or less, than the input: x: input, y: zeros",
        ),
        (
            {
                "stage": {
                    "update": ["x = F(x) + S(y)*x", "y += x"],
                    "backward": "store",
                }
            },
            "this update has no inverse",
        ),
        (
            {"stage": {"streams": {"x": "chunk(input, 1, 4)", "y": "chunk(input, 2, 4)"}}},
            "the streams are more, or less, than the input",
        ),
        ({"stage": {"output": "concat(x, x)"}}, "`concat(x, x)` cannot be undone"),
    ],
)
def test_what_is_no_bijection_is_refused(keys: dict[str, Any], message: str) -> None:
    (found,) = mistakes(**keys)
    assert found.startswith(f"E405 {message}")


def test_names_of_what_is_derived_are_taken() -> None:
    streams = {"log_determinant": "input"}
    stage = {"streams": streams, "update": ["log_determinant *= 2"], "output": "input"}
    with pytest.raises(SpecError, match="`log_determinant` has a meaning of its own"):
        archspec.build(spec(stage))


def test_a_stream_that_the_output_leaves_out_is_a_latent() -> None:
    two = {"trunk": {**COUPLING, "output": "y"}, "rest": {**COUPLING}}
    flow = archspec.build(spec(stages=two))
    assert isinstance(flow, Flow)
    value = torch.randn(3, 1, 4, 4)
    encoded = flow.eval().encode(value)
    assert [tuple(latent.shape) for latent in encoded.latents] == [(3, 2, 2, 2), (3, 2, 2, 2)]
    torch.testing.assert_close(flow.decode(encoded.latents), value)


def test_the_same_noise_gives_the_same_samples() -> None:
    flow = archspec.build(spec()).eval()
    assert isinstance(flow, Flow)
    one, other, third = (
        flow.sample(4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    still = flow.sample(2, temperature=0.0)
    assert torch.equal(still[0], still[1])


def test_actnorm_starts_by_the_data() -> None:
    stage = {
        "maps": {"A": "actnorm"},
        "update": ["x = A(x)", "y += F(x)", "x = exp(tanh(S(y)))*x", "x, y = y, x"],
        "depth": 3,
    }
    flow = archspec.build(spec(stage)).double().train()
    assert isinstance(flow, Flow)
    value = 3 + 5 * torch.randn(64, 1, 4, 4, dtype=torch.float64)
    flow.initialise(value)
    seen = []

    def look(module: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
        seen.append(output.detach())

    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(look)
    flow.encode(value)
    assert len(seen) == 3
    for output in seen:
        mean, variance = output.mean((0, 2, 3)), output.var((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-8, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance))


def test_memory_does_not_grow_with_depth() -> None:
    """Beside the parameters and their gradients: that is what a flow without activations is for."""

    def peak(depth: int) -> int:
        flow = archspec.build(spec({"depth": depth}, input={"image": [1, 32, 32]}))
        return step_memory(flow, lambda density: -density.mean(), torch.randn(8, 1, 32, 32)).peak

    assert peak(16) < 1.05 * peak(4)
