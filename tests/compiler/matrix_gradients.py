"""Rows of the matrix: which gradients are wanted, and by what."""

from __future__ import annotations

from typing import Any

import torch
from coupling_equations import SPLIT_IN_HALVES
from matrix_table import row
from plain_networks import (
    DRAWN,
    LEARNED,
    MASKED,
    OF_STREAMS,
    PER_CHANNEL,
    PULLED,
    TIMED,
    TWO_ARGUMENTS,
    Case,
    Wanted,
    assert_as_plain,
    backward,
    gradients,
    loss_of,
    normal,
    same_draws,
    seeded,
    stage_spec,
    streams_of,
    trunk,
    value,
)
from small_networks import BRANCH
from torch import Tensor
from torch.func import functional_call

THEME = "Which gradients"


@row(THEME, "`backward`")
def plain_backward(case: Case) -> None:
    def run(model: Any) -> Wanted:
        inputs = value().requires_grad_()
        out = model(inputs)
        backward(out)
        return [*gradients(model), inputs.grad, out.detach()]

    assert_as_plain(case, run)
    assert_as_plain(case, run, depth=3)


@row(THEME, "unequal streams")
def unequal_streams(case: Case) -> None:
    def run(model: Any) -> Wanted:
        streams = [stream.requires_grad_() for stream in streams_of(model)]
        leaving = trunk(model)(*streams)
        backward(leaving)
        found = [stream.grad for stream in streams]
        return [*gradients(trunk(model)), *found, *(out.detach() for out in leaving)]

    assert_as_plain(case, run)
    assert_as_plain(case, run, depth=3)


@row(THEME, "`autograd.grad` on any parameter and on inputs")
def autograd_grad(case: Case) -> None:
    def run(model: Any) -> Wanted:
        inputs = value().requires_grad_()
        wanted = [inputs, *model.parameters()]
        each = [torch.autograd.grad(loss_of(model(inputs)), t)[0] for t in wanted[::5]]
        loss = loss_of(model(inputs))
        of_one_graph = [torch.autograd.grad(loss, t, retain_graph=True)[0] for t in wanted[::-4]]
        together = torch.autograd.grad(loss_of(model(inputs)), wanted)
        assert all(t.grad is None for t in wanted)  # others are left alone
        return [*each, *of_one_graph, *together]

    assert_as_plain(case, run, change=same_draws)


@row(THEME, "`functional_call` with new values")
def functional(case: Case) -> None:
    def run(model: Any) -> Wanted:
        factor = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        leaves = {n: (0.9 * p).detach().requires_grad_() for n, p in model.named_parameters()}
        for given in (leaves, {n: factor * p for n, p in leaves.items()}):
            backward(functional_call(model, given, (value(),)))
        assert all(grad is None for grad in gradients(model))
        return [factor.grad, *(leaf.grad for leaf in leaves.values())]

    assert_as_plain(case, run)


@row(THEME, "a frozen stem; a stage input that needs no gradient")
def frozen_stem(case: Case) -> None:
    def run(model: Any) -> Wanted:
        model.stem.requires_grad_(False)
        backward(model(value()))
        assert all(p.grad is not None for p in model.stages.parameters())
        return gradients(model)

    assert_as_plain(case, run)


@row(THEME, "frozen layers and functions")
def frozen_layers(case: Case) -> None:
    frozen = ("layers.0", "layers.1", f".{case.names[0]}.", f".{case.names[-1]}.", "layers")
    for part in frozen:

        def run(model: Any, part: str = part) -> Wanted:
            for name, parameter in model.stages.named_parameters():
                parameter.requires_grad_(part not in name)
            inputs = value().requires_grad_()
            backward(model(inputs))
            return [*gradients(model), inputs.grad]

        assert_as_plain(case, run)


@row(THEME, "frozen or thawed between forward and backward")
def frozen_later(case: Case) -> None:
    def run(model: Any) -> Wanted:
        stage, inputs = trunk(model), value().requires_grad_()
        stage.requires_grad_(False)
        loss = loss_of(model(inputs))
        stage.requires_grad_(True)
        loss.backward()
        loss = loss_of(model(inputs))
        stage.layers[1].requires_grad_(False)
        loss.backward()
        assert not any(p.requires_grad for p in stage.layers[1].parameters())
        return [*gradients(model), inputs.grad]

    assert_as_plain(case, run, LEARNED)


@row(THEME, "some streams without a gradient")
def some_streams(case: Case) -> None:
    def run(model: Any) -> Wanted:
        streams = streams_of(model)
        streams[-1].requires_grad_()
        trunk(model).requires_grad_(False)
        backward(trunk(model)(*streams))
        return [streams[-1].grad]

    assert_as_plain(case, run)


@row(THEME, "a loss on one stream alone")
def one_stream(case: Case) -> None:
    def run(model: Any) -> Wanted:
        found: Wanted = []
        streams = [stream.requires_grad_() for stream in streams_of(model)]
        for index in range(len(streams)):
            loss = loss_of(trunk(model)(*streams)[index])
            wanted = [*streams, *trunk(model).parameters()]
            found += torch.autograd.grad(loss, wanted, allow_unused=True)
        return found

    assert_as_plain(case, run)


@row(THEME, "learned coefficients")
def learned_coefficients(case: Case) -> None:
    assert_as_plain(case, coefficients, LEARNED)


@row(THEME, "coefficients per channel")
def coefficients_per_channel(case: Case) -> None:
    assert_as_plain(case, coefficients, PER_CHANNEL)


@row(THEME, "coefficients that depend on streams")
def coefficients_of_streams(case: Case) -> None:
    assert_as_plain(case, coefficients, OF_STREAMS)


def coefficients(model: Any) -> Wanted:
    streams = [stream.requires_grad_() for stream in streams_of(model)]
    backward(trunk(model)(*streams))
    return [*gradients(trunk(model)), *(stream.grad for stream in streams)]


@row(THEME, "coefficients drawn per sample")
def draws_per_sample(case: Case) -> None:
    # BDIA draws by itself; to the others a drawn factor of every call is given.
    def run(model: Any) -> Wanted:
        streams = [stream.requires_grad_() for stream in streams_of(model)]
        draws = trunk(model).draw(streams[0])
        backward(trunk(model)(*streams, draws=draws))
        return [*gradients(trunk(model)), *(stream.grad for stream in streams)]

    assert_as_plain(case, run, DRAWN)


@row(THEME, "functions of several arguments")
def several_arguments(case: Case) -> None:
    layers = ["concat", "layer_norm", {"linear": "2*channels"}, "tanh", {"linear": "channels/4"}]
    functions = dict.fromkeys(case.names, layers)
    assert_as_plain(case, coefficients, TWO_ARGUMENTS, functions=functions)


@row(THEME, "functions that begin with a linear layer")
def linear_first(case: Case) -> None:
    layers = [{"linear": "2*channels"}, "tanh", {"linear": "channels/2"}]
    assert_as_plain(case, coefficients, functions=dict.fromkeys(case.names, layers))


@row(THEME, "streams that start from learned functions")
def learned_starts(case: Case) -> None:
    # A stage's own expressions stand in for the coupling's: the last stream starts from a function.
    streams = dict(stage_spec(case, OF_STREAMS)["streams"])
    last = list(streams)[-1]
    halved = "chunk" in streams[last]
    streams[last] = "Begin(input)"
    functions = stage_spec(case)["functions"]
    functions["Begin"] = [{"linear": "channels/2" if halved else "channels"}, "tanh"]

    def run(model: Any) -> Wanted:
        inputs = value().requires_grad_()
        backward(model(inputs))
        assert all(p.grad is not None for p in trunk(model).starts.parameters())
        return [*gradients(model), inputs.grad]

    assert_as_plain(case, run, streams=streams, functions=functions)


@row(THEME, "side inputs: attention masks, times, conditions, with gradients")
def side_inputs(case: Case) -> None:
    attending = ["layer_norm", {"attention": {"heads": 3, "masked": True}}]
    modulated = ["layer_norm", "modulate", {"mlp": 2}]
    some_hidden = torch.ones(2, 3, 3).tril().bool()
    for form, layers, name, sizes, given in (
        (MASKED, attending, "mask", {"tokens": [3, 3]}, normal((2, 3, 3), seeded(3))),
        (MASKED, attending, "mask", {"tokens": [3, 3]}, some_hidden),
        (TIMED, modulated, "time", {"features": [4]}, normal((2, 4), seeded(3))),
        (PULLED, BRANCH, "pull", trunk_shape(case), normal(trunk_sizes(case), seeded(3))),
    ):

        def run(model: Any, name: str = name, given: Tensor = given) -> Wanted:
            side = given.clone().requires_grad_(given.is_floating_point())
            inputs = value().requires_grad_()
            backward(model(inputs, **{name: side}))
            return [*gradients(model), inputs.grad, side.grad]

        functions = dict.fromkeys(case.names, layers)
        assert_as_plain(case, run, form, functions=functions, side={name: sizes})


def trunk_shape(case: Case) -> dict[str, Any]:
    return {"tokens": list(trunk_sizes(case)[1:])}


def trunk_sizes(case: Case) -> tuple[int, ...]:
    return (2, 3, 3 if case.coupling in SPLIT_IN_HALVES else 6)


@row(THEME, "layers that share their functions (`share: true`)")
def shared_functions(case: Case) -> None:
    assert_as_plain(case, coefficients, LEARNED, share=True, depth=3)


@row(THEME, "tied layers")
def tied_layers(case: Case) -> None:
    def tie(model: Any) -> None:
        first, second = trunk(model).layers
        for name in case.names:
            setattr(second, name, getattr(first, name))

    assert_as_plain(case, coefficients, change=tie)
