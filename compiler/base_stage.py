"""What every stage does, whatever the program: streams in, streams out, the derived inverse, the
choice of a backward strategy.

This file imports torch, the engine and its neighbours: `archspec build --emit` writes it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compiler.checkpointing import invoke_again, run_binomial, run_checkpointed
from compiler.engine import (
    OTHER_INFORMATION,
    Layer,
    RandomState,
    Values,
    invert,
    invoke,
    is_transformed,
    run,
    run_reversible,
    uncompiled,
)
from compiler.exact import Grid, check_range, ends_in, on_grid
from compiler.facts import (
    Facts,
    check_checkpoints,
    check_counts,
    check_progress,
    check_strategy,
)
from compiler.information import Information
from compiler.schedules import Checkpoints
from compiler.stage_inputs import check_draws, check_side, named, own_side
from compiler.storing import run_storing

HALF = (torch.float16, torch.bfloat16)
HALF_ROUNDING = 2**-8
"""A progress is rounded with the model's weights: by so much, as a share, in bfloat16."""


class BaseStage(nn.Module):
    """`depth` layers of one update program.

    `split` makes the streams from the stage's input, the stage itself maps streams to streams,
    `inverse` maps them back, and `merge` makes the stage's output from them. `backward` is the
    strategy: "reversible", "checkpoint" or "store"; it may be changed at any time.

    Side inputs are given by name: `stage(*streams, mask=mask)`.
    """

    transition: nn.Module
    starts: nn.ModuleDict
    """The functions that streams start from."""
    progress: Tensor
    """How far training is, from 0 to 1, where the program reads it: for layers, and saved with the
    weights. `set_progress` changes it."""

    def __init__(self, facts: Facts, backward: str) -> None:
        super().__init__()
        self.facts = facts
        self._backward = backward
        self._checkpoints = facts.checkpoints
        self._stored = facts.stored
        self._results = facts.results
        if facts.reads_progress:
            self.register_buffer("progress", torch.zeros(()))

    # What a program fills in

    def program(self) -> list[Layer]:
        """The layers as the engine runs them."""
        raise NotImplementedError

    def start(self, entry: Tensor) -> tuple[Tensor, ...]:
        """What has passed the transition (B, …) → the stage's streams."""
        raise NotImplementedError

    def merge(self, *streams: Tensor) -> Tensor:
        """Streams → the stage's output (B, …)."""
        raise NotImplementedError

    # What all have in common

    @property
    def backward(self) -> str:
        """How the backward pass comes by activations. Setting it raises ValueError for a strategy
        that there is not, or that this program does not allow."""
        return self._backward

    @backward.setter
    def backward(self, strategy: str) -> None:
        self._backward = check_strategy(strategy, self.facts)

    @property
    def checkpoints(self) -> Checkpoints:
        """Where streams are kept while the stage is checkpointed."""
        return self._checkpoints

    @property
    def stored(self) -> int:
        """How many of the last calls of functions store their activations all the same."""
        return self._stored

    @property
    def results(self) -> int:
        """How many of the last calls of functions keep their results, those that are stored
        counted."""
        return self._results

    def set_backward(
        self,
        backward: str,
        *,
        every: int | None = None,
        slots: int | None = None,
        stored: int | None = None,
        results: int | None = None,
    ) -> None:
        """As `backward = ...`, with a schedule for "checkpoint": streams kept before `every` so
        many layers, or, by the binomial schedule, before at most `slots` at any time; and with
        `stored`, so many calls of functions, the last ones, whose activations are stored; with
        `results`, so many whose results are kept, which spares their replays the last layer. What
        is not given is the spec's. Raises ValueError."""
        checkpoints = check_checkpoints(backward, every, slots)
        check_counts(backward, stored, results)
        self.backward = backward
        self._checkpoints = checkpoints or self.facts.checkpoints
        self._stored = self.facts.stored if stored is None else stored
        self._results = self.facts.results if results is None else results

    @property
    def has_inverse(self) -> bool:
        """Whether the program has an inverse, this far in training."""
        if self.facts.obstacles:
            return False
        return self.facts.invertible_from == 0 or self._has_come_to(self.facts.invertible_from)

    @uncompiled
    def _has_come_to(self, progress: float) -> bool:
        """By the tensor, which coefficients read too: whoever averages or copies buffers changes
        it without being asked. It costs a wait for the device, in stages that reverse `from` some
        time on alone."""
        if self.progress.is_meta:
            return False
        return float(self.progress) >= progress * (1 - HALF_ROUNDING)

    def set_progress(self, progress: float) -> None:
        """Say how far training is, from 0 to 1, if the program's coefficients depend on it. Raises
        ValueError outside that range."""
        check_progress(progress)
        if self.facts.reads_progress:
            self.progress.fill_(float(progress))

    def reach_inverse(self) -> None:
        """Let training be as far as the program needs for its inverse, if it is not."""
        if not self.facts.obstacles and not self.has_inverse:
            self.set_progress(self.facts.invertible_from)

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The stage's input (B, …) → its streams."""
        entry: Tensor = self.transition(value)
        kind = entry.device.type  # the meta device knows no autocast
        if entry.dtype in HALF and kind != "meta" and torch.is_autocast_enabled(kind):
            entry = entry.float()  # autocast is for residual functions; streams keep fp32
        return self.start(entry)

    def forward(
        self,
        *streams: Tensor,
        draws: Sequence[Values] | None = None,
        information: Information | None = None,
        **side: Tensor,
    ) -> Any:
        """Streams before the first layer → streams after the last, as tuples in the spec's order.

        `draws` gives the drawn coefficients layer by layer, as `draw` does; by default they are
        drawn here. Exact arithmetic rounds streams to its grid first, and writes what updates lose
        into `information`, an empty `Information()` that `inverse` is to be given. Raises
        `RangeError` where a stream leaves the range of the grid.
        """
        values = named(streams, self.facts.streams)
        given = self._given(streams[0], draws, side)
        way = self._way(streams)
        strategy = self._strategy(way)
        if self.facts.fraction_bits is None:
            return tuple(strategy(self.program(), values, given).values())
        keeps = way == "reversible" or self.facts.reads_information
        if information is None:
            information = Information(keeps=keeps)
        elif not information.is_empty or (keeps and not information.keeps):
            raise ValueError(
                f"stage `{self.facts.name}`: the information is that of another pass, or keeps "
                "nothing; give each forward pass an empty archspec.Information()"
            )
        elif information.keeps and not self.facts.obstacles and not self.has_inverse:
            raise ValueError(self.no_inverse_yet())
        return tuple(self._exactly(strategy, values, given, information).values())

    @uncompiled
    def _exactly(
        self,
        strategy: Callable[..., Values],
        values: Values,
        given: Sequence[Values],
        information: Information,
    ) -> Values:
        """Run the layers on the grid, and see that no stream has left its range."""
        assert self.facts.fraction_bits is not None
        grid = Grid(self.facts.fraction_bits)
        values = {name: on_grid(value, grid) for name, value in values.items()}
        for name, value in values.items():
            information.watch(-1, name, value)
        final = strategy(self.program(), values, given, information)
        check_range(information, grid, self.facts.name)
        return final

    def inverse(
        self,
        *streams: Tensor,
        draws: Sequence[Values] | None = None,
        information: Information | None = None,
        **side: Tensor,
    ) -> Any:
        """Streams after the last layer → streams before the first: the derived inverse.

        Drawn coefficients must be given where they are random, and, for exact arithmetic, the
        `information` that `forward` has filled. Raises RuntimeError for a program without an
        inverse, and where dropout makes the functions random.
        Gradients flow through it in floating-point arithmetic, and not through an exact one.
        """
        facts = self.facts
        if facts.obstacles:
            raise RuntimeError(f"stage `{facts.name}` has no inverse:\n{facts.obstacles}")
        if not self.has_inverse:
            raise RuntimeError(self.no_inverse_yet())
        if not self.training and not facts.invertible_in_evaluation:
            raise RuntimeError(
                f"stage `{facts.name}` has no inverse in evaluation: a factor of one of its "
                "streams is 0 there"
            )
        if draws is None and self.training and facts.drawn:
            raise RuntimeError(
                "this stage draws coefficients at random in training: give forward and inverse the "
                "same `draws`, from stage.draw(stream)"
            )
        if facts.needs_information and (information is None or information.is_empty):
            raise RuntimeError(
                f"the updates of stage `{facts.name}` lose bits of the streams, which its exact "
                "inverse needs: give forward an empty archspec.Information() as `information`, and "
                "inverse what forward has made of it"
            )
        given, final = self._given(streams[0], draws, side), named(streams, facts.final)
        random = RandomState(streams[0].device)
        # Rounding has no gradient that an inverse could be given.
        if facts.fraction_bits is None:
            values = invert(self.program(), final, given)
        else:
            grid = Grid(facts.fraction_bits)
            if information is not None and not ends_in(information, final, grid):
                raise RuntimeError(OTHER_INFORMATION)
            with torch.no_grad():
                values = invert(self.program(), final, given, information)
        if random.has_moved():
            raise RuntimeError(
                f"a function of stage `{facts.name}` drew random numbers, so that this is not "
                "the inverse of what it computed before: call eval() first"
            )
        return tuple(values.values())

    def no_inverse_yet(self) -> str:
        """What is said of a stage that is not `has_inverse`, for now."""
        return (
            f"stage `{self.facts.name}` has no inverse before training's progress is "
            f"{self.facts.invertible_from:g}, and it is {float(self.progress):g}: set_progress"
        )

    def draw(self, like: Tensor) -> list[Values]:
        """The drawn coefficients of each layer, for a batch as large as that of `like` (B, …)."""
        return [
            {n: self._draw(*values, like) for n, values in self.facts.drawn.items()}
            for _ in range(self.facts.depth)
        ]

    def _draw(self, values: tuple[float, ...], in_evaluation: float, like: Tensor) -> Tensor:
        """One value a sample, shaped to go with `like`."""
        shape = (like.shape[0],) + (1,) * (like.dim() - 1)
        if not self.training:
            return torch.full(shape, in_evaluation, dtype=like.dtype, device=like.device)
        known = torch.tensor(values, dtype=like.dtype, device=like.device)
        return known[torch.randint(len(values), shape, device=like.device)]

    def _given(
        self, like: Tensor, draws: Sequence[Values] | None, side: Mapping[str, Tensor]
    ) -> list[Values]:
        """All that a layer reads besides streams and what is learned, layer by layer."""
        check_side(side, self.facts.side, like.shape[0], f"stage `{self.facts.name}`")
        everywhere = {name: own_side(value, like) for name, value in side.items()}
        if self.facts.reads_progress:
            # A copy: training moves on between this forward pass and its backward pass.
            everywhere["progress"] = self.progress.detach().to(like.dtype, copy=True)
        if draws is None:
            draws = self.draw(like)
        elif self.facts.fraction_bits is not None:
            check_draws(draws, self.facts)
        return [{**drawn, **everywhere} for drawn in draws]

    def _way(self, streams: Sequence[Tensor]) -> str:
        """The strategy of this forward pass."""
        half = any(stream.dtype in HALF for stream in streams)
        if half and self.facts.fraction_bits is not None:
            raise RuntimeError(
                f"the streams of stage `{self.facts.name}` are in half precision, which does not "
                "hold the grid of exact arithmetic: keep the model in float32 and use "
                "torch.autocast"
            )
        if not torch.is_grad_enabled() or self.backward == "store" or is_transformed():
            return "store"
        if self.backward == "checkpoint":
            return "checkpoint"
        if not self.training and not self.facts.invertible_in_evaluation:
            # The gradient is still wanted, and there is nothing to reconstruct from.
            return "store"
        if half:
            raise RuntimeError(
                f"the streams of stage `{self.facts.name}` are in half precision, in which they "
                "cannot be reconstructed well enough for a gradient: keep the model in float32 and "
                "use torch.autocast, or set_backward('checkpoint')"
            )
        return "reversible" if self.has_inverse else "checkpoint"

    def _strategy(self, way: str) -> Callable[..., Values]:
        """What runs the layers."""
        if way == "store":
            return run
        if way == "reversible":
            others: Callable[..., Values] = partial(run_reversible, every=self.facts.store_every)
        else:
            others = checkpointed(self._checkpoints)
        if self.stored:
            return partial(run_storing, others=others, stored=self.stored, results=self.results)
        return partial(others, results=self.results)

    def begin(self, name: str, *arguments: Tensor) -> Tensor:
        """The result of a function that a stream starts from. Unless activations are stored, its
        own are computed again in the backward pass."""
        function: nn.Module = self.starts[name]
        is_stored = not torch.is_grad_enabled() or self.backward == "store" or is_transformed()
        if is_stored:
            return invoke(function, arguments, arguments[0].dtype)
        return invoke_again(name, function, arguments)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        elements = sum(torch.Size(sizes).numel() for sizes in self.facts.streams.values())
        schedule = str(self.checkpoints) if self.backward == "checkpoint" else ""
        counts = {"stored": self.stored, "results": self.results}
        if self.backward != "store":
            kept = (f"{name}: {number}" for name, number in counts.items() if number)
            schedule = ", ".join(filter(None, (schedule, *kept)))
        schedule = f" ({schedule})" if schedule else ""
        return f"backward={self.backward!r}{schedule}, elements of streams={elements}"


def checkpointed(checkpoints: Checkpoints) -> Callable[..., Values]:
    """What runs the layers of a checkpointed stage."""
    if checkpoints.slots is not None:
        return partial(run_binomial, slots=checkpoints.slots)
    return partial(run_checkpointed, every=checkpoints.every or 1)
