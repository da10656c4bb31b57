"""How images are made of velocities, as options of commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from archspec.cli.options import finite
from archspec.cli.runs import Refused

if TYPE_CHECKING:
    from archspec.training import AnyTask
    from runners.generation import Sampler, Solving

SOLVERS = ("midpoint", "heun", "euler")


def solving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--steps`, `--solver` and `--guidance`, which reach a command as `solving`, a map of
    those that were given."""

    @click.option(
        "--steps",
        type=click.IntRange(1, 10_000),
        help="Of flow matching: steps from noise to an image; 32 by default.",
    )
    @click.option(
        "--solver",
        type=click.Choice(SOLVERS),
        help="Of flow matching: midpoint, by default, and heun take two evaluations of the "
        "network a step, euler one.",
    )
    @click.option(
        "--guidance",
        type=click.FloatRange(min=0),
        callback=finite,
        help="Of flow matching with classes: 1, by default, for what the network says of a class; "
        "more to go past it.",
    )
    @wraps(command)
    def with_options(**given: Any) -> Any:
        names = ("steps", "solver", "guidance")
        asked = {name: given.pop(name) for name in names}
        told = {name: value for name, value in asked.items() if value is not None}
        return command(solving=told, **given)

    return with_options


def solving_of(given: dict[str, Any]) -> Solving:
    from runners.generation import Solving

    return Solving(**given)


def refuse_unused(sampler: Sampler, given: dict[str, Any], task: AnyTask) -> None:
    """Raises `Refused` for options that say nothing to a sampler, or that its training does not
    allow."""
    from archspec.training import FlowMatching
    from runners.generation import VelocitySampler

    if given and not isinstance(sampler, VelocitySampler):
        raise Refused(f"--{next(iter(given))} goes with `task: flow_matching`")
    if "guidance" in given and not sampler.classes:
        raise Refused("--guidance goes with classes: `task: {flow_matching: {classes: 10}}`")
    never_hidden = isinstance(task, FlowMatching) and task.unlabelled == 0
    if never_hidden and given.get("guidance", 1) != 1:
        raise Refused("--guidance needs a network that was trained without labels too: unlabelled")
