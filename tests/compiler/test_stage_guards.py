"""What stages refuse, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch

import archspec

TWO_LEARNED = [
    "stages.trunk.update=[v1 = a*v1 + F(x2), x1 += v1, v2 = b*v2 + G(x1), x2 += v2]",
    "stages.trunk.streams={x1: input, x2: input, v1: zeros, v2: zeros}",
    "stages.trunk.output=concat(x1, x2)",
    "stages.trunk.constants={a: {learn: 0.9, within: [0.5, 0.99]}, b: {learn: 0.8}}",
    "stages.trunk.constants.b.within=[0.5, 0.99]",
    "stages.trunk.depth=3",
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_streams_are_not_reversed(dtype: torch.dtype) -> None:
    model = archspec.build("momrev_vit_digits").to(dtype)
    images = torch.randn(2, 1, 8, 8, dtype=dtype)
    with pytest.raises(RuntimeError, match="half precision"):
        model(images)
    model.set_backward("checkpoint")(images).sum().backward()
    with torch.no_grad():
        model.set_backward("reversible")(images)


def test_autocast_keeps_double_streams_double() -> None:
    model = archspec.build("momrev_vit_digits").double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streams = model.stages[0].split(torch.randn(2, 16, 64, dtype=torch.float64))
    assert {stream.dtype for stream in streams} == {torch.float64}


def test_an_optimizer_may_run_as_soon_as_a_gradient_is_there() -> None:
    """Coefficients of later steps change before earlier ones are replayed."""

    def losses(backward: str) -> list[float]:
        torch.manual_seed(0)
        model = archspec.build("rev_vit_digits", TWO_LEARNED).double().set_backward(backward)
        for parameter in model.parameters():

            def descend(leaf: torch.Tensor) -> None:
                with torch.no_grad():
                    leaf.sub_(1e-2 * leaf.grad)
                leaf.grad = None

            parameter.register_post_accumulate_grad_hook(descend)
        images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        found = []
        for _ in range(3):
            loss = model(images).square().sum()
            loss.backward()
            found.append(loss.item())
        return found

    stored = losses("store")
    assert losses("checkpoint") == pytest.approx(stored, rel=1e-12)
    assert losses("reversible") == pytest.approx(stored, rel=1e-9)


def test_the_strategy_of_a_stage_is_checked() -> None:
    stage = archspec.build("vit_digits").stages["trunk"]
    with pytest.raises(ValueError, match="backward is one of"):
        stage.backward = "stored"
    with pytest.raises(ValueError, match="E301"):
        stage.backward = "reversible"
    assert stage.backward == "store"
    stage.backward = "checkpoint"
    assert stage.backward == "checkpoint"


def test_the_inverse_counts_no_statistics() -> None:
    model = archspec.build("revnet_digits").train()
    stage = model.stages["fine"]
    streams = [torch.randn(4, 16, 8, 8) for _ in range(2)]
    final = stage(*streams)
    before = copy.deepcopy(dict(stage.named_buffers()))
    back = stage.inverse(*final)
    for name, buffer in stage.named_buffers():
        assert torch.equal(buffer, before[name]), name
    for start, end in zip(streams, back, strict=True):
        torch.testing.assert_close(end, start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["revnet_digits"])
def test_chunks_of_channels_last_images_stay_channels_last(name: str) -> None:
    model = archspec.build(name)
    entry = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    stage = model.stages["fine"]
    for stream in stage(*stage.split(entry)):
        assert stream.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "settings",
    [
        ["stages.trunk.output=0*concat(x1, x2)"],
        ["stages.trunk.streams.v1=F0(0*input)", "stages.trunk.functions.F0=[layer_norm]"],
    ],
)
def test_expressions_that_fold_to_numbers_fill_their_shape(settings: list[str]) -> None:
    model = archspec.build("momrev_vit_digits", settings)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
