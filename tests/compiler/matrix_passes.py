"""Rows of the matrix: several passes, and what may or may not change between them."""

from __future__ import annotations

from typing import Any

import torch
from matrix_table import Refusal, everywhere, replayed, row
from plain_networks import (
    LEARNED,
    Case,
    Wanted,
    assert_as_plain,
    backward,
    gradients,
    is_plain,
    loss_of,
    pair,
    streams_of,
    trunk,
    value,
)

THEME = "Several passes"


@row(THEME, "two forwards before one backward")
def two_forwards(case: Case) -> None:
    def run(model: Any) -> Wanted:
        (loss_of(model(value())) + model(value(2.0)).sin().sum()).backward()
        return gradients(model)

    assert_as_plain(case, run)


@row(THEME, "two forwards, then their backwards in either order")
def two_backwards(case: Case) -> None:
    for order in (1, -1):

        def run(model: Any, order: int = order) -> Wanted:
            losses = [loss_of(model(value())), model(value(2.0)).sin().sum()]
            for loss in losses[::order]:
                loss.backward()
            return gradients(model)

        assert_as_plain(case, run)


@row(THEME, "accumulation over micro-batches")
def accumulation(case: Case) -> None:
    def run(model: Any) -> Wanted:
        for scale in (1.0, 2.0, 0.5):
            backward(model(value(scale)))
        return gradients(model)

    assert_as_plain(case, run)


@row(THEME, "a stage applied to its own streams")
def a_stage_twice(case: Case) -> None:
    def run(model: Any) -> Wanted:
        stage, streams = trunk(model), streams_of(model)
        backward(stage(*stage(*streams)))
        return gradients(stage)

    assert_as_plain(case, run)


@row(THEME, "`retain_graph`")
def retain_graph(case: Case) -> None:
    def run(model: Any) -> Wanted:
        inputs = value().requires_grad_()
        out = model(inputs)
        backward(out, retain_graph=True)
        out.sin().sum().backward(retain_graph=True)
        out.sum().backward()
        return [*gradients(model), inputs.grad]

    assert_as_plain(case, run)


@row(
    THEME,
    "a second backward without `retain_graph`",
    everywhere("by autograd", "second time"),
)
def second_backward(case: Case) -> None:
    def run(model: Any) -> Wanted:
        loss = loss_of(model(value()))
        loss.backward()
        first = gradients(model)
        if is_plain(model):
            return first
        loss.backward()
        return first

    assert_as_plain(case, run)


@row(THEME, "double backward")
def double_backward(case: Case) -> None:
    def run(model: Any) -> Wanted:
        inputs = value().requires_grad_()
        parameters = list(model.parameters())
        out = loss_of(model(inputs))
        (slope,) = torch.autograd.grad(out, inputs, create_graph=True)
        (slope.square().sum() + out).backward()
        slopes = torch.autograd.grad(loss_of(model(inputs)), parameters, create_graph=True)
        norm = sum(slope.square().sum() for slope in slopes)
        second = torch.autograd.grad(norm, [*parameters, inputs], allow_unused=True)
        return [*gradients(model), inputs.grad, *second]

    assert_as_plain(case, run, LEARNED, depth=2)


CHANGED = "changed in place between the forward and the backward"
MODIFIED = "modified by an inplace operation"


@row(
    THEME,
    "weights changed before backward",
    {
        **replayed("", CHANGED),
        "store": Refusal("by autograd", MODIFIED),
    },
)
def weights_changed(case: Case) -> None:
    def run(model: Any) -> Wanted:
        loss = loss_of(model(value()))
        if not is_plain(model):
            with torch.no_grad():
                for parameter in trunk(model).layers[0].parameters():
                    parameter.mul_(1.5)
        loss.backward()
        return gradients(model)

    assert_as_plain(case, run)


@row(
    THEME,
    "an optimizer step before backward",
    {
        **replayed("", CHANGED),
        "store": Refusal("by autograd", MODIFIED),
    },
)
def optimizer_step(case: Case) -> None:
    def run(model: Any) -> Wanted:
        optimizer = torch.optim.SGD(trunk(model).parameters(), lr=0.1)
        backward(model(value()))
        first = gradients(model)
        loss = loss_of(model(value()))
        if not is_plain(model):
            optimizer.step()
        loss.backward()
        return first

    assert_as_plain(case, run)


@row(
    THEME,
    "returned streams edited in place, with a gradient",
    {"reversible": Refusal("by autograd", "being modified inplace")},
)
def streams_edited(case: Case) -> None:
    def run(model: Any) -> Wanted:
        stage = trunk(model)
        leaving = stage(*streams_of(model))
        leaving[0].mul_(2)
        backward(leaving[0])
        return gradients(stage)

    assert_as_plain(case, run)


@row(
    THEME,
    "returned streams edited in place behind autograd's back",
    {"reversible": Refusal("by autograd", f"modified inplace|{MODIFIED}")},
    only=("reversible",),
)
def streams_edited_without_gradient(case: Case) -> None:
    # The others need these streams no longer, or no more than plain autograd does.
    _, model = pair(case)
    leaving = trunk(model)(*streams_of(model))
    loss = sum(out.sum() for out in leaving)
    with torch.no_grad():
        for out in leaving:
            if out.grad_fn is not None:
                out.add_(1)
    loss.backward()
