"""Programs of any kind in exact arithmetic, and all that autograd allows."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from exact_stages import (
    Pass,
    assert_exact,
    assert_same_pass,
    bfloat16,
    exact_stage,
    forms,
    grid_of,
    in_floats,
    one_pass,
    probe,
    streams_on_grid,
    unprobe,
)
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from random_programs import LAYERS, PROGRESS, given_to, programs
from small_networks import STRATEGIES
from torch import Tensor

from compiler.exact import RangeError
from compiler.information import Information
from compiler.stage import Stage

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=60
)
LEARNED = {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"}


def momentum(F: list[Any], G: list[Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A momentum RevNet, its gamma learned by channel."""
    return {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": F, "G": G or F},
        "constants": {"gamma": LEARNED},
        **keys,
    }


# Functions ---------------------------------------------------------------------------------------

INPUTS: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": [5, 4]},
    "features": {"features": [6]},
    "image": {"image": [2, 6, 4]},
}
FUNCTIONS: dict[str, tuple[str, list[Any]]] = {
    "linear": ("tokens", [{"linear": "channels"}]),
    "norm": ("tokens", ["layer_norm"]),
    "mlp": ("tokens", ["layer_norm", {"mlp": 2}]),
    "attention": ("tokens", ["layer_norm", {"attention": {"heads": 2}}]),
    "dropout": ("tokens", ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.4}}]),
    "drop path": ("features", ["layer_norm", {"mlp": 2}, {"drop_path": 0.4}]),
    "pair": ("features", [{"transpose_pair": {"activation": "tanh"}}]),
    "conv": ("image", [{"conv": {}}, "tanh"]),
    "batch norm": ("image", [{"conv": {}}, "batch_norm", "silu"]),
    "group norm": ("image", [{"group_norm": 1}, {"conv": {"kernel": 1}}, {"drop_path": 0.3}]),
}
IS_RANDOM = ("dropout", "drop path", "group norm")


@pytest.mark.parametrize("context", [None, bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: str, training: bool, context: Any) -> None:
    kind, layers = FUNCTIONS[function]
    stage = exact_stage(momentum(layers), input=INPUTS[kind]).train(training)
    keys = {} if context is None else {"context": context}
    # An inverse by hand has no statistics of a batch but its own: those are the same streams'.
    assert_exact(stage, inverse=not (training and function in IS_RANDOM), **keys)


@pytest.mark.parametrize("function", ["conv", "batch norm", "group norm"])
def test_channels_last(function: str) -> None:
    stage = exact_stage(momentum(FUNCTIONS[function][1]), input=INPUTS["image"])
    streams = [s.contiguous(memory_format=torch.channels_last) for s in streams_on_grid(stage)]
    assert_exact(stage, streams, inverse=function not in IS_RANDOM)
    other = one_pass(stage.eval(), streams)
    assert other.outputs[0].is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_for_functions_alone() -> None:
    """Streams in bfloat16 would not hold the grid."""
    stage = exact_stage(momentum(FUNCTIONS["mlp"][1]), input=INPUTS["tokens"])
    found = one_pass(stage, streams_on_grid(stage), context=bfloat16)
    assert {out.dtype for out in found.outputs} == {torch.float32}
    half = [stream.bfloat16() for stream in streams_on_grid(stage)]
    with pytest.raises(RuntimeError, match="half precision"):
        stage(*half)


# Programs ----------------------------------------------------------------------------------------

PROGRAMS: dict[str, dict[str, Any]] = {
    "remainders and indices on one stack": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["tanh"]},
        "constants": {"g": LEARNED},
        "update": ["y = g*y + F(x)", "x = 9/10*x + F(y)"],
        "output": "x",
    },
    "all forms": {
        "streams": dict.fromkeys("xyzvw", "input"),
        "functions": {"F": ["tanh"]},
        "constants": {"g": LEARNED, "d": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5}},
        "update": [
            "y = g*y + F(x)",
            "x = -2/3*x + F(y)",
            "z = z/4 - F(x)",
            "v = d*v + 0.3*z",
            "w = w*exp(tanh(F(v))/2) + x",
            "x, y, z, v, w = w, x, y, z, v",
        ],
        "output": "x + w",
    },
    "one gauge, rewritten twice": {
        "streams": {"x": "input", "v": "zeros"},
        "functions": {"F": ["layer_norm", {"linear": "channels"}]},
        "constants": {"g": LEARNED},
        "update": ["v += F(x)", "v = g*v - F(x)", "x += v/2", "v *= 0.97"],
        "output": "x",
    },
    "temporaries": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["tanh"], "G": [{"linear": "channels"}]},
        "constants": {"g": LEARNED},
        "update": ["k := G(y) + 0.3*y", "x = g*x + F(k)*k", "m := F(x)", "y = (1 - g/2)*y - m"],
        "output": "x",
    },
    "squares into channels": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": [{"conv": {}}, "tanh"], "G": [{"conv": {}}]},
        "maps": {"Q": "squeeze", "U": "unsqueeze"},
        "constants": {"g": 0.9},
        "update": [
            "x = g*x + F(y)",
            "x = Q(x)",
            "y = Q(y)",
            "y = -g*y + G(x)",
            "x = U(x)",
            "y = U(y)",
        ],
        "output": "x",
    },
    "bits, remainders and a side input": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": [{"linear": "channels"}, "tanh"], "J": LAYERS["tokens"]["J"]},
        "constants": {"g": LEARNED},
        "update": ["x = x/2 + J(y, t)", "y = g*y + 0.3*t*F(x)", "x = -3/4*x + y"],
        "output": "x",
    },
}


@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, share: bool, depth: int) -> None:
    program = {"depth": depth, "share": share, **PROGRAMS[name]}
    entry = INPUTS["image" if "maps" in program else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage(program, input=entry, side=side)
    streams = streams_on_grid(stage)
    assert_exact(stage, streams, given_to(stage, 3, streams[0]))


def test_all_forms_are_among_them() -> None:
    found = set()
    for name, program in PROGRAMS.items():
        entry = INPUTS["image" if "maps" in program else "tokens"]
        side = {"t": entry} if "side" in name else {}
        found |= forms(exact_stage({"depth": 1, **program}, input=entry, side=side))
    assert found == {"Unit", "Parity", "Remainder", "Monotone", "Gauge"}


def built(program: dict[str, Any], bits: int) -> Stage:
    head = [] if "features" in program["input"] else [{"pool": "mean"}]
    entry, side = program["input"], program["side"]
    written = {**program["stage"], "arithmetic": {"exact": bits}}
    stage = exact_stage(written, input=entry, head=[*head, {"linear": "classes"}], side=side)
    if stage.facts.reads_progress:
        stage.progress.fill_(PROGRESS)
    return stage


@RANDOM
@given(programs(), st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([8, 12, 14]))
def test_random_programs(
    program: dict[str, Any], batch: int, training: bool, last: bool, bits: int
) -> None:
    note(str(program))
    stage = built(program, bits).train(training)
    streams = streams_on_grid(stage, batch)
    if last and "image" in program["input"]:
        streams = tuple(s.contiguous(memory_format=torch.channels_last) for s in streams)
    given = given_to(stage, batch, streams[0])
    stage.backward = "store"
    try:
        any_gradient = any(out.requires_grad for out in stage(*streams, **given))
    except RangeError:
        return
    functions = {str(f) for f in stage.plan.functions}
    is_random = training and any("drop" in text for text in functions)
    # Which layers are reconstructed depends on what gradients need.
    assume(any_gradient)
    assert_exact(stage, streams, given, inverse=not is_random, every_layer=False)


@RANDOM
@given(programs(), st.booleans())
def test_random_programs_at_every_layer(program: dict[str, Any], training: bool) -> None:
    """Where the backward pass reconstructs a stream, it is that of the forward pass."""
    note(str(program))
    stage = built(program, 10).train(training)
    streams = streams_on_grid(stage, 2)
    probes, keys = probe(stage), given_to(stage, 2, streams[0])
    try:
        one_pass(stage, streams, keys)
    except RangeError:
        return
    for of_layer in probes:
        for found in of_layer.values():
            assert found.back is None or torch.equal(found.back, found.ahead)  # type: ignore[arg-type]
    unprobe(stage)


# Autograd ----------------------------------------------------------------------------------------


def small() -> Stage:
    return exact_stage(momentum(["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}], depth=4))


def losses(stage: Stage, scale: float = 1.0) -> Tensor:
    torch.manual_seed(3)
    outputs = stage(*(scale * s for s in streams_on_grid(stage)))
    weights = [torch.randn_like(out) for out in outputs]
    return torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum()


def grads(stage: Stage) -> list[Tensor]:
    """Those of the parameters, zero where there is none."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in stage.parameters()]
    stage.zero_grad()
    return found


def assert_alike(run: Any, make: Any = small) -> None:
    """A way to get gradients gives the same by every strategy, bit for bit."""
    found = {}
    for strategy in STRATEGIES:
        stage = make()
        stage.backward = strategy
        found[strategy] = run(stage)
    assert found["store"]
    for strategy in STRATEGIES[1:]:
        for a, b in zip(found[strategy], found["store"], strict=True):
            assert torch.equal(a, b)


def test_two_backward_passes() -> None:
    def run(stage: Stage) -> list[Tensor]:
        loss = losses(stage)
        loss.backward(retain_graph=True)
        first = grads(stage)
        loss.backward()
        second = grads(stage)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        return first

    assert_alike(run)


def test_two_forward_passes_before_one_backward() -> None:
    def run(stage: Stage) -> list[Tensor]:
        one, two, three = losses(stage), losses(stage, 2.0), losses(stage, 0.5)
        (one + three).backward()
        two.backward()
        return grads(stage)

    assert_alike(run)


def test_accumulated_gradients() -> None:
    def run(stage: Stage) -> list[Tensor]:
        for scale in (1.0, 0.25, 2.0):
            losses(stage, scale).backward()
        return grads(stage)

    assert_alike(run)


def test_frozen_parameters_and_streams() -> None:
    def run(stage: Stage) -> list[Tensor]:
        for name, parameter in stage.named_parameters():
            parameter.requires_grad_("layers.1.F" in name or "coefficients" in name)
        losses(stage).backward()
        return grads(stage)

    assert_alike(run)


def test_one_output_unused() -> None:
    def run(stage: Stage) -> list[Tensor]:
        torch.manual_seed(3)
        outputs = stage(*streams_on_grid(stage))
        outputs[2].square().sum().backward()
        return grads(stage)

    assert_alike(run)


def test_gradients_of_gradients() -> None:
    """In float64, bit for bit between strategies, and near those of ordinary arithmetic."""

    def make() -> Stage:
        stage = momentum([{"linear": "channels"}, "tanh"], depth=2)
        return exact_stage({**stage, "arithmetic": {"exact": 20}}, torch.float64)

    def run(stage: Stage) -> list[Tensor]:
        leaves = [s.requires_grad_() for s in streams_on_grid(make())]
        outputs = stage(*leaves)
        loss = torch.stack([out.pow(3).sum() for out in outputs]).sum()
        first = torch.autograd.grad(loss, [*leaves, *stage.parameters()], create_graph=True)
        second = torch.stack([g.square().sum() for g in first]).sum()
        found = torch.autograd.grad(second, [*leaves, *stage.parameters()])
        return [g.detach() for g in (*first, *found)]

    assert_alike(run, make)
    stage = make()
    other = in_floats(stage)
    other.backward = "store"
    for a, b in zip(run(stage), run(other), strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def copied(stage: Stage) -> Stage:
    return copy.deepcopy(stage)


def pickled(stage: Stage) -> Stage:
    found: Stage = pickle.loads(pickle.dumps(stage))
    return found


def saved(stage: Stage) -> Stage:
    file = io.BytesIO()
    torch.save(stage, file)
    file.seek(0)
    found: Stage = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("way", [copied, pickled, saved])
def test_copies_of_a_stage(way: Any) -> None:
    stage = small()
    streams = streams_on_grid(stage)
    assert_same_pass(one_pass(way(stage), streams), one_pass(stage, streams))


MODES = {"grad": torch.enable_grad, "no grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("back", ["grad", "no grad"])
@pytest.mark.parametrize("ahead", MODES)
@pytest.mark.parametrize("name", ["attention", *PROGRAMS])
def test_an_inverse_in_another_mode(name: str, ahead: str, back: str) -> None:
    """By any strategy; the information is that of the forward pass."""
    functions = momentum(FUNCTIONS["attention"][1]) if name == "attention" else PROGRAMS[name]
    entry = INPUTS["image" if "maps" in functions else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage({"depth": 3, **functions}, input=entry, side=side).eval()
    streams = streams_on_grid(stage)
    given = given_to(stage, 3, streams[0])
    for strategy in STRATEGIES:
        stage.backward, information = strategy, Information()
        with MODES[ahead]():
            outputs = stage(*streams, **given, information=information)
        mode = "inference" if ahead == "inference" else back  # its tensors stay there
        with MODES[mode]():
            found = stage.inverse(*outputs, **given, information=information)
        for a, b in zip(found, streams, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_gradient_flows_through_an_inverse(name: str) -> None:
    """Rounding has none, and what goes around it would silently be a part."""
    entry = INPUTS["image" if "maps" in PROGRAMS[name] else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage({"depth": 2, **PROGRAMS[name]}, input=entry, side=side).eval()
    streams, information = streams_on_grid(stage), Information()
    given = given_to(stage, 3, streams[0])
    outputs = stage(*streams, **given, information=information)
    back = stage.inverse(*outputs, **given, information=information)
    assert any(out.requires_grad for out in outputs)
    assert not any(b.requires_grad for b in back)


def test_functional_call_and_transforms() -> None:
    stage = exact_stage(momentum([{"linear": "channels"}, "tanh"]))
    streams, parameters = streams_on_grid(stage), dict(stage.named_parameters())

    def loss(parameters: dict[str, Tensor], *streams: Tensor) -> Tensor:
        outputs = torch.func.functional_call(stage, parameters, streams)
        return torch.stack([out.square().sum() for out in outputs]).sum()

    wanted = torch.autograd.grad(loss(parameters, *streams), list(parameters.values()))
    found = torch.func.grad(loss)(parameters, *streams)
    for gradient, (name, value) in zip(wanted, found.items(), strict=True):
        assert torch.equal(gradient, value), name


# The right thing ---------------------------------------------------------------------------------

BRANCH: list[Any] = [{"linear": "channels"}, "tanh", {"scale": 0.5}]
COUPLED = {
    "additive": "FG",
    "momentum": "F",
    "momentum_pair": "FG",
    "bdia": "F",
    "affine": "STUV",
    "leapfrog": "F",
    "midpoint": "F",
    "verlet": "FG",
    "reversible_heun": "F",
    "asynchronous_leapfrog": "F",
}


def relative(found: Pass, wanted: Pass) -> float:
    """The largest error of an output or a gradient, relative to its norm."""
    pairs = list(zip(found.outputs, wanted.outputs, strict=True))
    for name, gradient in wanted.gradients.items():
        other = found.gradients[name]
        assert (other is None) == (gradient is None)
        if other is not None and gradient is not None:
            pairs.append((other, gradient))
    return max(float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in pairs)


@pytest.mark.parametrize("bits", [10, 14, 18])
@pytest.mark.parametrize("coupling", COUPLED)
def test_near_ordinary_arithmetic(coupling: str, bits: int) -> None:
    """As near as the grid allows: 16 times nearer on one 16 times finer."""
    functions = dict.fromkeys(COUPLED[coupling], BRANCH)
    written = {"depth": 4, "coupling": coupling, "functions": functions}
    stage = exact_stage({**written, "arithmetic": {"exact": bits}})
    streams = streams_on_grid(stage)
    given = {"draws": stage.draw(streams[0])}
    doubles = [{n: v.double() for n, v in drawn.items()} for drawn in given["draws"]]
    other = one_pass(
        in_floats(stage), [s.double() for s in streams], {"draws": doubles}, strategy="store"
    )
    assert relative(one_pass(stage, streams, given), other) < 60 * grid_of(stage).unit


@pytest.mark.parametrize("learned", [LEARNED, {"learn": -0.8, "within": [-0.99, -0.6]}])
@pytest.mark.parametrize("coupling", ["momentum", "momentum_pair"])
def test_gradients_of_learned_coefficients(coupling: str, learned: dict[str, Any]) -> None:
    functions = dict.fromkeys(COUPLED[coupling], BRANCH)
    written = {"depth": 6, "coupling": coupling, "functions": functions}
    stage = exact_stage({**written, "constants": {"gamma": learned}})
    streams = streams_on_grid(stage)
    found = one_pass(stage, streams).gradients
    wanted = one_pass(in_floats(stage), [s.double() for s in streams], strategy="store").gradients
    coefficients = [name for name in wanted if "coefficients" in name]
    assert len(coefficients) == 6
    for name in coefficients:
        a, b = found[name], wanted[name]
        assert a is not None
        assert b is not None
        assert b.any()
        assert (a - b).norm() < 0.005 * b.norm()


def test_evaluation_of_bdia_is_the_ordinary_network_on_the_grid() -> None:
    functions = {"F": ["layer_norm", {"mlp": 2}]}
    bdia = exact_stage({"depth": 5, "coupling": "bdia", "functions": functions}).eval()
    plain = exact_stage(
        {
            "depth": 5,
            "streams": {"x": "input"},
            "functions": functions,
            "update": ["x = x + F(x)"],
            "output": "x",
            "backward": "store",
        }
    ).eval()
    plain.load_state_dict(bdia.state_dict())
    _, x = streams_on_grid(bdia)
    with torch.no_grad():
        for given in (None, Information()):
            before, after = bdia(x, x, information=given)
            assert torch.equal(after, *plain(x))
    assert not torch.equal(before, after)
    with pytest.raises(RuntimeError, match="no inverse in evaluation"):
        bdia.inverse(before, after, information=Information())
    plain(x)[0].square().sum().backward()
    wanted = grads(plain)
    for strategy in STRATEGIES:
        bdia.backward = strategy
        bdia(x, x)[1].square().sum().backward()
        for a, b in zip(grads(bdia), wanted, strict=True):
            assert b.any()
            assert torch.equal(a, b)
