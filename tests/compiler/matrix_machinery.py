"""Rows of the matrix: what PyTorch does around a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from matrix_table import replayed, row
from plain_networks import (
    Case,
    Wanted,
    assert_as_plain,
    backward,
    gradients,
    is_plain,
    loss_of,
    same_draws,
    value,
)
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

THEME = "Machinery around a model"


# torch.func: hooks on saved tensors do not work there, so that stages store their activations.


@row(THEME, "`torch.func.grad`, `vjp`, `jacrev` (activations are stored)")
def func_gradients(case: Case) -> None:
    def run(model: Any) -> Wanted:
        parameters = {n: p.detach() for n, p in model.named_parameters()}

        def loss(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return loss_of(functional_call(model, parameters, (inputs,)))

        by_parameters = grad(loss)(parameters, value())
        out, pull = vjp(lambda inputs: model(inputs), value())
        jacobian = jacrev(lambda inputs: model(inputs).sum(0))(value())
        return [*by_parameters.values(), *pull(torch.ones_like(out)), jacobian]

    assert_as_plain(case, run, change=same_draws)


@row(THEME, "`torch.func.vmap`, gradients per sample (activations are stored)")
def func_vmap(case: Case) -> None:
    def run(model: Any) -> Wanted:
        model.eval()  # where nothing is drawn
        parameters = {n: p.detach() for n, p in model.named_parameters()}

        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            out = functional_call(model, parameters, (sample[None],))
            return out.square().sum()

        per_sample = vmap(grad(loss), (None, 0))(parameters, value())
        return list(per_sample.values())

    assert_as_plain(case, run)


@row(THEME, "forward-mode differentiation (activations are stored)")
def forward_mode(case: Case) -> None:
    def run(model: Any) -> Wanted:
        tangent = value(0.5).cos()
        _, by_func = jvp(lambda inputs: model(inputs), (value(),), (tangent,))
        with forward_ad.dual_level():
            out = model(forward_ad.make_dual(value(), tangent))
            by_dual = forward_ad.unpack_dual(out).tangent
            loss_of(out).backward()  # forward over reverse
        return [by_func.detach(), by_dual, *gradients(model)]

    assert_as_plain(case, run, change=same_draws)


@row(THEME, "batched gradients (`is_grads_batched`)")
def batched_gradients(case: Case) -> None:
    assert_as_plain(case, batched)


def batched(model: Any) -> Wanted:
    inputs = value().requires_grad_()
    out = model(inputs).sum(0)
    wanted = [inputs, *model.parameters()]
    each = torch.eye(3, dtype=torch.float64)
    return list(torch.autograd.grad(out, wanted, each, is_grads_batched=True))


@row(
    THEME,
    "batched gradients through dropout",
    replayed("vmap draws no random numbers", "random operations inside of vmap"),
)
def batched_gradients_of_dropout(case: Case) -> None:
    layers = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}]
    assert_as_plain(case, batched, functions=dict.fromkeys(case.names, layers))


@row(THEME, "an outer checkpoint, of either kind")
def outer_checkpoint(case: Case) -> None:
    for reentrant in (False, True):

        def run(model: Any, reentrant: bool = reentrant) -> Wanted:
            inputs = value().requires_grad_()
            backward(checkpoint(model, inputs, use_reentrant=reentrant))
            return [*gradients(model), inputs.grad]

        assert_as_plain(case, run)


@row(THEME, "hooks on saved tensors set outside")
def outer_hooks(case: Case) -> None:
    def run(model: Any) -> Wanted:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            loss = loss_of(model(value()))
        loss.backward()
        return gradients(model)

    assert_as_plain(case, run)


# Threads -----------------------------------------------------------------------------------------


def at_once(*runs: Callable[[], Any]) -> list[Any]:
    """Run in as many threads, which start together; their results."""
    results: list[Any] = [None] * len(runs)
    ready = threading.Barrier(len(runs))

    def work(index: int) -> None:
        ready.wait()
        try:
            results[index] = runs[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def one_pass(model: Any, scale: float) -> Wanted:
    inputs = value(scale).requires_grad_()
    wanted = [inputs, *model.parameters()]
    return list(torch.autograd.grad(loss_of(model(inputs)), wanted))


@row(THEME, "one model in two threads")
def threads_of_one_model(case: Case) -> None:
    scales = (1.0, 2.0)

    def run(model: Any) -> Wanted:
        passes = [lambda scale=scale: one_pass(model, scale) for scale in scales]
        results = [p() for p in passes] if is_plain(model) else at_once(*passes)
        return [gradient for result in results for gradient in result]

    layers = ["layer_norm", {"mlp": 2}]
    assert_as_plain(case, run, change=same_draws, functions=dict.fromkeys(case.names, layers))


@row(THEME, "`torch.compile(model)`, as eager to 1e-5")
def compiled(case: Case) -> None:
    def run(model: Any) -> Wanted:
        inputs = value(dtype=torch.float32).requires_grad_()
        if is_plain(model):
            out = model(inputs)
        else:
            torch._dynamo.reset()
            out = torch.compile(model, backend="eager")(inputs)  # test_compile.py: inductor
        backward(out)
        return [*gradients(model), inputs.grad, out.detach()]

    assert_as_plain(case, run, dtype=torch.float32, bound=1e-5, depth=1)
