"""Rows of the matrix: residual functions that look odd."""

from __future__ import annotations

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
    pair,
    streams_of,
    trunk,
    value,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import archspec

THEME = "Residual functions"


class Dense(nn.Module):
    """A function to build odd ones from, for any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result.tanh()


class Same(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return x


class View(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).transpose(0, 1)[:]


class ViewOfWeight(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear.bias.expand_as(x)


class Detached(Dense):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = super().forward(x).sigmoid()
        return gate * super().forward(x) + super().forward(x).detach()


class InPlaceInside(Dense):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x).mul_(0.5)
        hidden[:, 0] = 0
        return torch.relu_(hidden) + x


class Ragged(Dense):
    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, :, 0] > 0
        result = x * 0.5
        result[chosen] = super().forward(x[chosen])
        return result


class GradInside(Dense):
    """The gradient of an energy."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            energy = super().forward(leaf).square().sum()
            return torch.autograd.grad(energy, leaf, create_graph=True)[0]


class FuncInside(Dense):
    """The same by torch.func."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: super(FuncInside, self).forward(x).square().sum())(x)


class Checkpointed(Dense):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        def hidden(x: Tensor) -> Tensor:
            return nn.functional.dropout(super(Checkpointed, self).forward(x), 0.2)

        result: Tensor = checkpoint(hidden, x, use_reentrant=self.reentrant)
        return result


class CheckpointedReentrantly(Checkpointed):
    reentrant = True


class Editing(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class EditingAView(Dense):
    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        x[:, 0].zero_()
        return result


class Counting(Dense):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) * float(self.count)


class Masked(Dense):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mask", torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.mask)


class SpectralNorm(Dense):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.utils.parametrizations.spectral_norm(self.linear)


class WeightNorm(Dense):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.utils.parametrizations.weight_norm(self.linear)


def with_functions(case: Case, make: Callable[[int], nn.Module]) -> Callable[[Any], None]:
    """Replaces every function."""

    def change(model: Any) -> None:
        channels = streams_of(model)[0].shape[-1]
        for layer in trunk(model).layers:
            for name in case.names:
                setattr(layer, name, make(channels).double())

    return change


def changed(case: Case, make: Callable[[int], nn.Module]) -> Any:
    """The compiled network alone, its functions replaced."""
    _, model = pair(case)
    with_functions(case, make)(model)
    return model


def in_stage(model: Any) -> Wanted:
    streams = [stream.requires_grad_() for stream in streams_of(model)]
    backward(trunk(model)(*streams))
    return [*gradients(trunk(model)), *(stream.grad for stream in streams)]


def in_network(model: Any) -> Wanted:
    backward(model(value()))
    return gradients(model)


def check_functions(case: Case, *kinds: Callable[[int], nn.Module], run: Any = in_stage) -> None:
    for make in kinds:
        assert_as_plain(case, run, change=with_functions(case, make))


@row(THEME, "F returns its input or a view of it")
def returns_its_input(case: Case) -> None:
    check_functions(case, Same, View)


@row(THEME, "F returns a view of a weight; F detaches")
def returns_a_weight(case: Case) -> None:
    check_functions(case, ViewOfWeight, Detached)


@row(THEME, "F edits what it computed itself; shapes that depend on data")
def edits_its_own(case: Case) -> None:
    check_functions(case, InPlaceInside, Ragged)


@row(THEME, "F takes a gradient inside")
def gradient_inside(case: Case) -> None:
    check_functions(case, GradInside)


@row(
    THEME,
    "F uses `torch.func.grad` inside",
    replayed("PyTorch has no hooks there", "saved tensor hooks"),
)
def func_inside(case: Case) -> None:
    check_functions(case, FuncInside)


@row(THEME, "nested checkpointing inside F, with dropout")
def nested_checkpoint(case: Case) -> None:
    check_functions(case, Checkpointed)


@row(THEME, "nested reentrant checkpointing inside F")
def nested_reentrant_checkpoint(case: Case) -> None:
    check_functions(case, CheckpointedReentrantly)


IN_PLACE = replayed("", "changes its argument in place")
REPLAYED = ("checkpoint", "reversible")
"""With stored activations such an edit is what autograd makes of it: often its own error."""


@row(THEME, "F edits its argument", IN_PLACE, only=REPLAYED)
def edits_its_argument(case: Case) -> None:
    in_network(changed(case, Editing))


@row(THEME, "F edits a view of its argument", IN_PLACE, only=REPLAYED)
def edits_a_view(case: Case) -> None:
    in_network(changed(case, EditingAView))


@row(THEME, "F reads a buffer")
def reads_a_buffer(case: Case) -> None:
    check_functions(case, Masked)


@row(THEME, "F counts in a buffer", replayed("", "changes one of its buffers"))
def counts_in_a_buffer(case: Case) -> None:
    check_functions(case, Counting)


@row(THEME, "weight norm")
def weight_norm(case: Case) -> None:
    check_functions(case, WeightNorm)


@row(
    THEME,
    "spectral norm in training",
    replayed("it iterates in a buffer", "changes one of its buffers"),
)
def spectral_norm(case: Case) -> None:
    check_functions(case, SpectralNorm)


@row(THEME, "spectral norm in evaluation")
def spectral_norm_in_evaluation(case: Case) -> None:
    def run(model: Any) -> Wanted:
        return in_stage(model.eval())

    check_functions(case, SpectralNorm, run=run)


class Failing(Dense):
    """Raises an error where it is told to."""

    error: type[BaseException] | None = None
    replaying = False

    def forward(self, x: Tensor) -> Tensor:
        if self.error and archspec.is_replaying() == self.replaying:
            raise self.error("inside F")
        return super().forward(x)


def after_an_error(case: Case, error: type[BaseException], replaying: bool) -> None:
    """A step that fails in F, then a clean one."""

    def run(model: Any) -> Wanted:
        if not is_plain(model):
            function = getattr(trunk(model).layers[0], case.names[0])
            function.error, function.replaying = error, replaying
            try:
                backward(model(value()))
            except error:
                pass
            else:
                assert case.strategy == "store"
                assert replaying
            function.error = None
            model.zero_grad()
            assert torch.is_grad_enabled()
            assert not archspec.is_replaying()
        torch.manual_seed(6)
        return in_stage(model)

    assert_as_plain(case, run, change=with_functions(case, Failing))


@row(THEME, "an exception inside F, then a clean step")
def exceptions(case: Case) -> None:
    after_an_error(case, KeyError, replaying=False)
    after_an_error(case, KeyError, replaying=True)


@row(THEME, "KeyboardInterrupt inside F, then a clean step")
def interrupts(case: Case) -> None:
    after_an_error(case, KeyboardInterrupt, replaying=False)
    after_an_error(case, KeyboardInterrupt, replaying=True)
