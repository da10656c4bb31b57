"""The order of every solver among the couplings, on a linear equation with a known solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import archspec
from compiler.stage import Stage

WIDTH = 4
END = 1.0
STEPS = (16, 32, 64)


def generator() -> Tensor:
    """A: a rotation and some damping, (4, 4)."""
    random = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    return (random - random.mT) / 2 - 0.1 * (random @ random.mT) / WIDTH


A = generator()
FORCE = -A @ A.mT - 0.5 * torch.eye(WIDTH).double()
"""Of the second-order equation x'' = FORCE x, negative definite."""
START = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def flow(time: float) -> Tensor:
    """The solution of x' = A x at a time."""
    return START @ torch.linalg.matrix_exp(time * A).mT


def swing(time: float) -> Tensor:
    """The solution of x'' = FORCE x that starts at rest: cos of a root of -FORCE, by its
    eigenvalues."""
    squares, axes = torch.linalg.eigh(-FORCE)
    return START @ axes @ torch.diag(torch.cos(time * squares.sqrt())) @ axes.mT


def sheared(time: float) -> tuple[Tensor, Tensor]:
    """The solution of y' = A z, z' = -A^T y, whose first half is START, and so is its second."""
    both = torch.cat([START, START], 1)
    zero = torch.zeros_like(A)
    whole = torch.cat([torch.cat([zero, A], 1), torch.cat([-A.mT, zero], 1)])
    y, z = (both @ torch.linalg.matrix_exp(time * whole).mT).chunk(2, dim=1)
    return y, z


@dataclass(frozen=True)
class Solver:
    """A coupling as a solver: its order, what its functions are, its streams at the beginning of
    a solution in steps of `h`, and the stream that ends at the solution."""

    coupling: str
    order: int
    functions: dict[str, Tensor]
    streams: Callable[[float], Sequence[Tensor]]
    solution: Callable[[float], Tensor]
    output: int = 0


def _twice(h: float) -> Sequence[Tensor]:
    return START, START


SOLVERS = (
    Solver("euler", 1, {"F": A}, lambda h: [START], flow),
    Solver("rk2", 2, {"F": A}, lambda h: [START], flow),
    Solver("rk4", 4, {"F": A}, lambda h: [START], flow),
    Solver("asynchronous_leapfrog", 2, {"F": A}, lambda h: [START, START @ A.mT], flow),
    Solver("reversible_heun", 2, {"F": A}, _twice, flow),
    Solver("midpoint", 2, {"F": A}, lambda h: [flow(-h), START], flow, output=1),
    Solver("leapfrog", 2, {"F": FORCE}, lambda h: [swing(-h), START], swing, output=1),
    # Half a step apart, the streams are those of the Störmer-Verlet method.
    Solver(
        "verlet",
        2,
        {"F": A, "G": A.mT},
        lambda h: [sheared(-h / 2)[0], sheared(0)[1]],
        lambda time: sheared(time)[1],
        output=1,
    ),
)


def stage_of(solver: Solver, steps: int) -> Stage:
    """The coupling's stage, all layers with the same linear functions, in so many steps."""
    spec = {
        "archspec": 1,
        "name": "solver",
        "summary": "Steps of a solver",
        "input": {"features": [2 * WIDTH if solver.coupling == "verlet" else WIDTH]},
        "stages": {
            "solution": {
                "depth": steps,
                "coupling": solver.coupling,
                "constants": {"h": f"{END}/depth"},
                "functions": {
                    name: [{"linear": {"out": WIDTH, "bias": False}}] for name in solver.functions
                },
                "share": True,
                "backward": "checkpoint",
            }
        },
        "head": [{"linear": "classes"}],
        "task": {"classify": 2},
    }
    stage = archspec.build(spec).double().stages[0]
    assert isinstance(stage, Stage)
    for name, matrix in solver.functions.items():
        stage.shared.load_state_dict({f"{name}.linear.weight": matrix}, strict=False)
    return stage


def error(solver: Solver, steps: int) -> float:
    """How far the last step is from the solution."""
    with torch.no_grad():
        streams = stage_of(solver, steps)(*solver.streams(END / steps))
    return (streams[solver.output] - solver.solution(END)).norm().item()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.coupling)
def test_halving_the_steps_divides_the_error_by_the_order(solver: Solver) -> None:
    errors = [error(solver, steps) for steps in STEPS]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.coupling)
def test_gradients_of_a_solution_are_those_of_stored_activations(solver: Solver) -> None:
    stage = stage_of(solver, 8)
    found = []
    for backward in ("store", "checkpoint"):
        stage.backward = backward
        streams = [s.clone().requires_grad_() for s in solver.streams(END / 8)]
        loss = stage(*streams)[solver.output].square().sum()
        found.append(torch.autograd.grad(loss, [*streams, *stage.parameters()], allow_unused=True))
    for stored, replayed in zip(*found, strict=True):
        assert stored is not None
        assert replayed is not None
        assert torch.equal(stored, replayed)


def test_a_second_start_of_the_solution_is_needed_for_the_order_of_the_midpoint_rule() -> None:
    """What the coupling starts from, the input twice, is off by a step: order 1."""
    found = next(solver for solver in SOLVERS if solver.coupling == "midpoint")
    at_rest = Solver("midpoint", 1, found.functions, _twice, flow, output=1)
    errors = [error(at_rest, steps) for steps in STEPS]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)
