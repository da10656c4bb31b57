"""The Lasso, min over z of ½|y - D z|² + penalty·|z|₁: its objective, its solution by FISTA, and
ISTA's steps as the weights of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

GAP = 1e-9
"""The duality gap at which a solution is one, as a share of the objective at zero."""
CHECKED_EVERY = 50
MOST_STEPS = 20_000
AT_ONCE = 500
"""So many problems are solved together: whether any can be is soon known."""


class UnsolvedError(RuntimeError):
    """Problems whose optimum is out of reach: the penalty is lost beside the measurements."""


@dataclass(frozen=True)
class Lasso:
    """D is `dictionary` (m, n), for measurements (B, m) and codes (B, n)."""

    dictionary: Tensor
    penalty: float

    @property
    def curvature(self) -> float:
        """L, the largest eigenvalue of D^T D, which gradient steps are divided by."""
        return float(torch.linalg.matrix_norm(self.dictionary, 2)) ** 2

    def objective(self, measurements: Tensor, codes: Tensor) -> Tensor:
        """½|y - D z|² + penalty·|z|₁ for each sample, (B)."""
        residual = measurements - codes @ self.dictionary.to(codes.device).T
        return residual.square().sum(1) / 2 + self.penalty * codes.abs().sum(1)

    def gap(self, measurements: Tensor, codes: Tensor) -> Tensor:
        """How far the objective is above its least value at most, (B): the duality gap at the
        residual, scaled until it is feasible."""
        residual = measurements - codes @ self.dictionary.T
        largest = (residual @ self.dictionary).abs().amax(1, keepdim=True)
        feasible = residual * (self.penalty / largest.clamp(min=self.penalty))
        dual = measurements.square().sum(1) - (measurements - feasible).square().sum(1)
        return self.objective(measurements, codes) - dual / 2


def soft_threshold(value: Tensor, threshold: float) -> Tensor:
    """sign(x)·max(|x| - threshold, 0)."""
    return value.sign() * torch.relu(value.abs() - threshold)


def ista(lasso: Lasso, measurements: Tensor, codes: Tensor) -> Tensor:
    """One step of ISTA (Daubechies, Defrise and De Mol 2004), (B, n) → (B, n)."""
    size = 1 / lasso.curvature
    slope = (codes @ lasso.dictionary.T - measurements) @ lasso.dictionary
    return soft_threshold(codes - size * slope, size * lasso.penalty)


def solve(lasso: Lasso, measurements: Tensor, gap: float = GAP) -> Tensor:
    """Codes (B, n) whose objective is within `gap` times that of zero of the least: FISTA (Beck and
    Teboulle 2009) that starts anew where it overshoots (O'Donoghue and Candès 2015). In float64.
    Raises `UnsolvedError` where it does not end."""
    return torch.cat([_solved(lasso, some, gap) for some in torch.split(measurements, AT_ONCE)])


def _solved(lasso: Lasso, measurements: Tensor, gap: float) -> Tensor:
    """All together, and fewer as the others are solved."""
    largest = gap * measurements.square().sum(1) / 2
    found = measurements.new_zeros(len(measurements), lasso.dictionary.shape[1])
    left = torch.arange(len(measurements))
    now = ahead = found
    speed = measurements.new_ones(len(measurements), 1)
    for step in range(1, MOST_STEPS + 1):
        after = ista(lasso, measurements[left], ahead)
        overshot = ((ahead - after) * (after - now)).sum(1, keepdim=True) > 0
        speed = torch.where(overshot, 1.0, speed)
        faster = (1 + (1 + 4 * speed.square()).sqrt()) / 2
        ahead = after + torch.where(overshot, 0.0, (speed - 1) / faster) * (after - now)
        now, speed = after, faster
        if step % CHECKED_EVERY == 0:
            unsolved = lasso.gap(measurements[left], now) > largest[left]
            found[left[~unsolved]] = now[~unsolved]
            left, now, ahead = left[unsolved], now[unsolved], ahead[unsolved]
            speed = speed[unsolved]
            if not len(left):
                return found
    count = f"{len(left)} of {len(measurements)} taken together"
    raise UnsolvedError(f"Lasso problems, {count}, are not solved after {MOST_STEPS} steps")


# ISTA as a network --------------------------------------------------------------------------------


def start_at_ista(model: nn.Module, lasso: Lasso) -> int:
    """Set the weights of every function of the form `[concat, linear, soft_threshold]`, called as
    F(x, y), so that it is a step of ISTA: x → S(x + D^T (y - D x)/L, penalty/L). Gives how many
    such functions there are."""
    size = 1 / lasso.curvature
    dictionary = lasso.dictionary
    kept = torch.eye(dictionary.shape[1]).to(dictionary) - size * dictionary.T @ dictionary
    weight = torch.cat((kept, size * dictionary.T), dim=1)
    functions = [f for f in model.modules() if _is_step(f, weight)]
    with torch.no_grad():
        for function in functions:
            parameters = dict(function.named_parameters())
            parameters["linear.weight"].copy_(weight)
            parameters["soft_threshold.threshold"].fill_(size * lasso.penalty)
            if "linear.bias" in parameters:
                parameters["linear.bias"].zero_()
    return len(functions)


def _is_step(module: nn.Module, weight: Tensor) -> bool:
    names = [name for name, _ in module.named_children()]
    if names != ["concat", "linear", "soft_threshold"]:
        return False
    return dict(module.named_parameters())["linear.weight"].shape == weight.shape
