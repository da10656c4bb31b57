"""Stages and networks as modules: names, copies, strategies, what they refuse."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import (
    BRANCH,
    CONVOLUTION,
    STRATEGIES,
    additive,
    assert_same_outputs,
    error,
    gradient_error,
    network,
    outcome,
    spec,
    streams_for,
)
from torch import Tensor

import archspec

LEARNED = {
    "depth": 2,
    "coupling": "momentum_pair",
    "functions": {
        "F": ["layer_norm", {"attention": {"heads": 2}}, {"drop_path": 0.1}],
        "G": BRANCH,
    },
    "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99]}},
}
BDIA = {"depth": 2, "coupling": "bdia", "functions": {"F": BRANCH}}


def value() -> Tensor:
    return torch.randn(4, 5, 6, dtype=torch.float64)


# Names -------------------------------------------------------------------------------------------


def test_names_of_weights() -> None:
    layer = [
        "F.layer_norm.weight",
        "F.layer_norm.bias",
        "F.attention.query_key_value.weight",
        "F.attention.query_key_value.bias",
        "F.attention.project.weight",
        "F.attention.project.bias",
        "G.layer_norm.weight",
        "G.layer_norm.bias",
        "G.mlp.expand.weight",
        "G.mlp.expand.bias",
        "G.mlp.contract.weight",
        "G.mlp.contract.bias",
        "coefficients.gamma",
    ]
    stem = [{"linear": 6}, "gelu", {"linear": 6}]
    names = list(network(LEARNED, stem=stem).state_dict())
    assert names == [
        "stem.linear.weight",
        "stem.linear.bias",
        "stem.linear_2.weight",
        "stem.linear_2.bias",
        *(f"stages.trunk.layers.{i}.{name}" for i in range(2) for name in layer),
        "head.linear.weight",
        "head.linear.bias",
    ]


def test_names_do_not_depend_on_the_strategy() -> None:
    names = [list(network({**LEARNED, "backward": s}).state_dict()) for s in STRATEGIES]
    assert names[0] == names[1] == names[2]


def test_stages_and_coefficients_may_have_any_name() -> None:
    stage = {
        **additive(),
        "streams": {"forward": "input", "data": "input + Train(input)"},
        "functions": {"F": BRANCH, "Train": BRANCH},
        "constants": {"parameters": {"learn": 0.5}, "grad": {"learn": 0.1}},
        "update": ["forward += parameters*F(data)", "data += grad*forward"],
        "output": "forward + data",
    }
    del stage["coupling"]
    given = spec(stage)
    given["stages"] = dict.fromkeys(("train", "items", "keys", "zero"), stage)
    model = archspec.build(given).double()
    model.train().eval()
    assert [stage.plan.name for stage in model.stages] == ["train", "items", "keys", "zero"]
    assert model.stages[1] is model.stages["items"] is model.stages[-3]
    assert len(model.stages) == 4
    assert "stages.keys.layers.0.coefficients.parameters" in model.state_dict()
    assert "stages.zero.starts.Train.mlp.expand.weight" in model.state_dict()
    model(value()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_printing() -> None:
    text = str(network(LEARNED))
    assert "backward='reversible'" in text
    assert "(trunk): Stage(" in text


# Copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [LEARNED, BDIA])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_are_whole_and_independent(stage: dict[str, Any], how: str, tmp_path: Path) -> None:
    model = network(stage)
    model(value()).sum().backward()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif how == "torch.save":
        torch.save(model, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        other = network({**stage, "backward": "store"}, seed=9)
        other.load_state_dict(model.state_dict())
        other.set_backward("reversible")
    streams = streams_for(model.stages[0])
    wanted, found = (outcome(m.stages[0], streams) for m in (model, other))
    assert_same_outputs(found, wanted)
    assert gradient_error(found, wanted) == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(p.any() for n, p in other.named_parameters() if "coefficients" not in n)


def test_a_copy_between_forward_and_backward_is_no_matter() -> None:
    model = network(LEARNED)
    torch.manual_seed(0)
    loss = model(value()).square().sum()
    copy.deepcopy(model)
    pickle.dumps(model)
    loss.backward()


# Strategies --------------------------------------------------------------------------------------


def test_set_backward_leaves_weights_alone() -> None:
    model = network(LEARNED)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    for strategy in (*STRATEGIES, *reversed(STRATEGIES)):
        assert model.set_backward(strategy) is model
        assert model.stages[0].backward == strategy
        now = model.state_dict()
        assert all(now[n].data_ptr() == t.data_ptr() for n, (t, _) in before.items())
        assert all(torch.equal(now[n], was) for n, (_, was) in before.items())


def test_a_strategy_may_change_before_backward() -> None:
    model = network(additive(backward="store"))
    inputs = value()
    model(inputs).square().sum().backward()
    wanted = [p.grad for p in model.parameters()]
    for first, then in (("reversible", "store"), ("checkpoint", "reversible")):
        model.zero_grad()
        loss = model.set_backward(first)(inputs).square().sum()
        model.set_backward(then)
        loss.backward()
        assert (
            max(error(p.grad, w) for p, w in zip(model.parameters(), wanted, strict=True)) < 1e-12
        )


def test_strategies_of_single_stages() -> None:
    given = spec(additive())
    given["stages"] = {name: additive(backward=name) for name in ("store", "checkpoint")}
    given["stages"]["reversible"] = additive()
    model = archspec.build(given).double()
    assert [stage.backward for stage in model.stages] == ["store", "checkpoint", "reversible"]
    inputs = value()
    model(inputs).square().sum().backward()
    mixed = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.set_backward("store")(inputs).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), mixed, strict=True):
        assert error(gradient, parameter.grad) < 1e-12


def test_what_cannot_be_reversed_says_why() -> None:
    model = network(
        {"depth": 2, "coupling": "residual", "functions": {"F": BRANCH}, "backward": "store"}
    )
    model.set_backward("checkpoint")
    with pytest.raises(ValueError, match=r"F reads x, the stream that this update rewrites"):
        model.set_backward("reversible")
    assert model.stages[0].backward == "checkpoint"
    with pytest.raises(ValueError, match="backward is one of reversible, checkpoint, store"):
        model.set_backward("reverse")
    with pytest.raises(RuntimeError, match="F reads x, the stream that this update rewrites"):
        model.stages[0].inverse(*streams_for(model.stages[0]))


# Streams -----------------------------------------------------------------------------------------


def test_streams_of_the_wrong_number_or_shape() -> None:
    stage = network(additive()).stages[0]
    x1, x2 = streams_for(stage)
    for run in (stage, stage.inverse, stage.merge):
        with pytest.raises(ValueError, match=r"expected the streams x1, x2, found 1"):
            run(x1)
        with pytest.raises(ValueError, match=r"stream `x2` is \(batch, 5, 6\), found"):
            run(x1, x2[:, 1:])


def test_split_stage_merge_is_the_network() -> None:
    model = network(LEARNED).eval()
    stage = model.stages[0]
    streams = stage.split(model.stem(value()))
    assert len(streams) == 4
    torch.manual_seed(0)
    inputs = value()
    merged = stage.merge(*stage(*stage.split(inputs)))
    assert merged.shape == (4, 5, 12)
    assert torch.equal(model.head(merged), model(inputs))


def test_streams_start_from_functions_and_numbers() -> None:
    stage = {
        "depth": 1,
        "streams": {"x": "input", "v": "0.5*input - F0(G0(input))/2", "w": "zeros + h"},
        "functions": {"F": BRANCH, "F0": [{"linear": "channels"}], "G0": ["tanh"]},
        "constants": {"h": 0.25},
        "update": ["v += F(x)", "x += v*w", "w += h*x"],
        "output": "x + h*v",
    }
    built = network(stage).stages[0]
    inputs = value().requires_grad_()
    x, v, w = built.split(inputs)
    linear = built.starts["F0"].linear  # type: ignore[union-attr]
    assert torch.equal(x, inputs)
    assert error(v, 0.5 * inputs - linear(torch.tanh(inputs)) / 2) < 1e-14
    assert torch.equal(w, torch.full_like(x, 0.25))
    assert error(built.merge(x, v, w), x + 0.25 * v) < 1e-14
    v.sum().backward()
    assert linear.weight.grad is not None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streams_of_different_widths(strategy: str) -> None:
    stage = {
        "depth": 3,
        "streams": {
            "x": "chunk(input, 1, 3)",
            "y": "concat(chunk(input, 2, 3), chunk(input, 3, 3))",
        },
        "functions": {"F": [{"linear": 2}, "tanh"], "G": [{"linear": 4}, "tanh"], "H": ["tanh"]},
        "constants": {
            "g": {"learn": 0.5},
            "d": {"draw": [0.5, 1.5], "per": "sample", "evaluate": 1},
        },
        "update": [
            "k := G(x)",
            "j := k + H(k)",
            "y = d*y + g*j",
            "i := F(y)",
            "x = x*exp(tanh(i)) + d*i",
        ],
        "output": "concat(y, x)",
        "backward": "store",
    }
    stored = network(stage).stages[0]
    streams = streams_for(stored)
    draws = stored.draw(streams[0])
    wanted = outcome(stored, streams, draws=draws)
    built = network({**stage, "backward": strategy}).stages[0]
    found = outcome(built, streams, draws=draws)
    assert_same_outputs(found, wanted)
    assert gradient_error(found, wanted) < 1e-12
    back = built.inverse(*found.outputs, draws=draws)
    assert max(error(b, s) for b, s in zip(back, streams, strict=True)) < 1e-12
    assert built.merge(*streams).shape == (4, 5, 6)


def test_the_inverse_wants_functions_without_dropout() -> None:
    stage = network(LEARNED).stages[0]
    streams = streams_for(stage)
    with pytest.raises(RuntimeError, match=r"drew random numbers.*eval\(\)"):
        stage.inverse(*streams)
    back = stage.eval().inverse(*stage(*streams))
    assert max(error(b, s) for b, s in zip(back, streams, strict=True)) < 1e-12


def test_the_inverse_has_gradients() -> None:
    stage = network(additive()).stages[0]
    leaving = [s.requires_grad_() for s in streams_for(stage, batch=1)]
    back = stage.inverse(*leaving)
    again = stage(*back)
    for out, wanted in zip(again, leaving, strict=True):
        assert error(out, wanted) < 1e-12
    (slope,) = torch.autograd.grad(again[0].sum(), leaving[0])
    assert error(slope, torch.ones_like(slope)) < 1e-10


# Layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [[3, 4, 4], [1, 4, 4], [3, 1, 1]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_channels_last_all_the_way(strategy: str, size: list[int]) -> None:
    stage = network(additive(CONVOLUTION, CONVOLUTION), input={"image": size}).stages[0]
    streams = streams_for(stage)
    stage.backward = "store"
    wanted = outcome(stage, streams)
    stage.backward = strategy  # type: ignore[assignment]
    last = [s.contiguous(memory_format=torch.channels_last) for s in streams]
    stage.to(memory_format=torch.channels_last)
    assert gradient_error(outcome(stage, streams), wanted) < 1e-11  # the weights alone
    found = outcome(stage, last)
    for out, plain in zip(found.outputs, wanted.outputs, strict=True):
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert error(out, plain) < 1e-13
    assert gradient_error(found, wanted) < 1e-11


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streams_of_any_strides(strategy: str) -> None:
    stage = network(additive(backward=strategy)).stages[0]
    streams = streams_for(stage)
    wanted = outcome(stage, streams)
    first = streams[0].transpose(1, 2).contiguous().transpose(1, 2)
    second = streams[1].repeat_interleave(2, 0)[::2]
    found = outcome(stage, [first, second])
    assert_same_outputs(found, wanted)
    assert gradient_error(found, wanted) < 1e-13
    same = outcome(stage, [first[:1].expand(4, -1, -1), second])
    assert torch.equal(same.outputs[0][0], wanted.outputs[0][0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_batch(strategy: str) -> None:
    model = network({**LEARNED, "backward": strategy})
    out = model(torch.zeros(0, 5, 6, dtype=torch.float64))
    assert out.shape == (0, 3)
    out.sum().backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
