"""Rows of the matrix: modes, precision, random numbers, statistics, copies, layouts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from matrix_table import Refusal, everywhere, row
from plain_networks import (
    LEARNED,
    Case,
    Wanted,
    assert_as_plain,
    backward,
    gradients,
    is_plain,
    loss_of,
    normal,
    pair,
    same_draws,
    seeded,
    streams_of,
    trunk,
    value,
)
from small_networks import CONVOLUTION
from torch import Tensor, nn

import archspec

THEME = "Modes, precision and state"

DROPOUT = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}, {"drop_path": 0.3}]
IMAGE = {"image": [4, 5, 5]}
IMAGE_STEM = [{"conv": {"out": 4}}]


def in_network(model: Any) -> Wanted:
    inputs = value().requires_grad_()
    out = model(inputs)
    backward(out)
    return [*gradients(model), inputs.grad, out.detach()]


def functions_of(case: Case, layers: list[Any]) -> dict[str, Any]:
    return dict.fromkeys(case.names, layers)


@row(THEME, "`torch.no_grad`")
def no_grad(case: Case) -> None:
    def run(model: Any) -> Wanted:
        with torch.no_grad():
            return [model(value()), *trunk(model)(*streams_of(model))]

    assert_as_plain(case, run, change=same_draws)


@row(THEME, "evaluation mode, with gradients")
def evaluation(case: Case) -> None:
    assert_as_plain(case, lambda model: in_network(model.eval()))


@row(THEME, "modes changed between forward and backward")
def modes_changed(case: Case) -> None:
    def run(model: Any) -> Wanted:
        loss = loss_of(model(value()))
        model.eval()
        loss.backward()
        assert not any(module.training for module in model.modules())
        return gradients(model)

    assert_as_plain(case, run, functions=functions_of(case, DROPOUT))


@row(THEME, "`inference_mode`, then a training step")
def inference_mode(case: Case) -> None:
    def run(model: Any) -> Wanted:
        with torch.inference_mode():
            predicted = model(value())
        return [predicted.clone(), *in_network(model)]

    assert_as_plain(case, run)


@row(
    THEME,
    "inputs made in `inference_mode`",
    everywhere("by autograd", "Inference tensors cannot be saved for backward"),
)
def inference_inputs(case: Case) -> None:
    _, model = pair(case)
    with torch.inference_mode():
        inputs = value()
    backward(model(inputs))


@row(THEME, "copies of inputs made in `inference_mode`")
def inference_copies(case: Case) -> None:
    def run(model: Any) -> Wanted:
        with torch.inference_mode():
            streams = streams_of(model)
        backward(trunk(model)(*(stream.clone() for stream in streams)))
        return gradients(trunk(model))

    assert_as_plain(case, run)


@row(THEME, "dropout and drop path; the generator is left as by plain autograd")
def random_numbers(case: Case) -> None:
    def run(model: Any) -> Wanted:
        loss = loss_of(model(value()))
        after = torch.rand(3, dtype=torch.float64)  # and the generator moves on
        loss.backward()
        return [*gradients(model), after, torch.rand(3, dtype=torch.float64)]

    assert_as_plain(case, run, functions=functions_of(case, DROPOUT))


@row(THEME, "BatchNorm counts once")
def batch_norm(case: Case) -> None:
    def run(model: Any) -> Wanted:
        images = normal((6, 4, 5, 5), seeded(3))
        before = [buffer.clone() for buffer in model.buffers()]
        backward(model(images))
        after = list(model.buffers())
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        first = [*gradients(model), *(buffer.double() for buffer in after)]
        model.eval()
        backward(model(images))
        return [*first, *gradients(model), *(buffer.double() for buffer in model.buffers())]

    layers = [{"conv": {}}, "batch_norm", "tanh"]
    # Rounding grows through the variances of small batches.
    assert_as_plain(
        case, run, functions=functions_of(case, layers), input=IMAGE, stem=IMAGE_STEM, bound=1e-11
    )


@row(THEME, "channels-last images")
def channels_last(case: Case) -> None:
    def run(model: Any) -> Wanted:
        images = normal((2, 4, 5, 5), seeded(3))
        images = images.to(memory_format=torch.channels_last).requires_grad_()
        model.to(memory_format=torch.channels_last)
        backward(model(images))
        return [*gradients(model), images.grad]

    assert_as_plain(
        case, run, functions=functions_of(case, CONVOLUTION), input=IMAGE, stem=IMAGE_STEM
    )


def copied(how: Callable[[Any], Any]) -> Callable[[Any], Wanted]:
    def run(model: Any) -> Wanted:
        if is_plain(model):
            return in_network(model)
        other = how(model)
        found = in_network(other)
        assert all(grad is None for grad in gradients(model))
        return found

    return run


@row(THEME, "`deepcopy`, `pickle`, `state_dict`")
def copies(case: Case) -> None:
    assert_as_plain(case, copied(copy.deepcopy), LEARNED)
    assert_as_plain(case, copied(lambda model: pickle.loads(pickle.dumps(model))), LEARNED)

    def loaded(model: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(model.state_dict())
        return other

    assert_as_plain(case, copied(loaded), LEARNED)


@row(THEME, "`.to()` another precision and back")
def moved(case: Case) -> None:
    def run(model: Any) -> Wanted:
        model.to(torch.float32)
        backward(model(value(dtype=torch.float32)))
        single = [gradient.clone() for gradient in gradients(model) if gradient is not None]
        assert {gradient.dtype for gradient in single} == {torch.float32}
        model.zero_grad()
        model.to(torch.float64)
        return in_network(model)

    assert_as_plain(case, run, LEARNED)


@row(THEME, "float32, to 1e-5")
def single_precision(case: Case) -> None:
    def run(model: Any) -> Wanted:
        backward(model(value(dtype=torch.float32)))
        return gradients(model)

    assert_as_plain(case, run, dtype=torch.float32, bound=1e-5)


@row(THEME, "autocast to bfloat16")
def autocast(case: Case) -> None:
    def run(model: Any) -> Wanted:
        dtypes: list[torch.dtype] = []
        for layer in trunk(model).layers:
            function = getattr(layer, case.names[0])
            function.register_forward_hook(lambda m, given, out: dtypes.append(out.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(value(dtype=torch.float32)).float().square().sum()
        loss.backward()
        assert set(dtypes) == {torch.bfloat16}  # in the replay too
        return gradients(model)

    # A stream that comes back with another last bit may be rounded to its neighbour in bfloat16.
    assert_as_plain(case, run, dtype=torch.float32, bound=4e-2)


@row(THEME, "autocast to float16, with a gradient scaler")
def gradient_scaler(case: Case) -> None:
    def run(model: Any) -> Wanted:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(value(dtype=torch.float32)).float().square().sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = [g.clone() for g in gradients(model) if g is not None]
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 16.0  # no step was skipped
        return [*found, *(parameter.detach() for parameter in model.parameters())]

    assert_as_plain(case, run, dtype=torch.float32, bound=1e-2)


@row(
    THEME,
    "streams in half precision",
    {"reversible": Refusal("use autocast", "in half precision")},
)
def half_precision(case: Case) -> None:
    def run(model: Any) -> Wanted:
        streams = streams_of(model)
        backward([out.float() for out in trunk(model)(*streams)])
        return [g.float() for g in gradients(trunk(model)) if g is not None]

    assert_as_plain(case, run, dtype=torch.bfloat16, bound=1e-1)


@row(THEME, "module hooks fire; `is_replaying()` tells replays")
def module_hooks(case: Case) -> None:
    calls = {False: 0, True: 0}

    def run(model: Any) -> Wanted:
        seen: list[Tensor] = []
        for layer in trunk(model).layers:
            for name in case.names:
                function: nn.Module = getattr(layer, name)
                function.register_forward_hook(count)
                function.register_full_backward_hook(
                    lambda m, given, wanted: seen.append(wanted[0].clone())
                )
        calls.update({False: 0, True: 0})
        found = in_network(model)
        assert not archspec.is_replaying()
        if not is_plain(model):
            assert calls[True] == (0 if case.strategy == "store" else calls[False])
        assert calls[False] >= 2 * len(case.names)
        return [*found, *seen]

    def count(module: nn.Module, given: Any, out: Any) -> None:
        calls[archspec.is_replaying()] += 1

    assert_as_plain(case, run)


@row(THEME, "hooks on gradients")
def gradient_hooks(case: Case) -> None:
    def run(model: Any) -> Wanted:
        seen: Wanted = []
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: seen.append(grad.clone()))
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
        backward(model(value()))
        return sorted_by_size(seen)

    def sorted_by_size(seen: Wanted) -> Wanted:
        # Which of two parameters of one node comes first is autograd's own affair.
        return sorted(seen, key=lambda g: (0, 0.0) if g is None else (g.numel(), float(g.norm())))

    assert_as_plain(case, run)


@row(THEME, "empty batches")
def empty_batches(case: Case) -> None:
    _, model = pair(case)
    out = model(value()[:0])
    out.sum().backward()
    assert out.shape == (0, 3)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
