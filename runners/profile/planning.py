"""The planner: as much kept as a budget of memory allows."""

from __future__ import annotations

from dataclasses import dataclass

from archspec.diagnostics import Diagnostic, Span, SpecError
from archspec.loading import Loaded
from archspec.memory_size import size_text
from archspec.training import Train
from compiler.network import Network
from runners.profile.fit import largest_batch, most_within
from runners.profile.prediction import CannotPredictError, Forecast
from runners.profile.schedules import (
    AsWritten,
    Kept,
    Planned,
    all_calls,
    keeping,
    most_kept,
    phases,
    planned_stages,
)


@dataclass(frozen=True)
class Plan:
    """What a budget comes to."""

    planned: Planned
    calls: int
    """Of functions, in the stages that are planned."""
    peak: int
    """Bytes of a step, as predicted."""
    budget: int

    def __str__(self) -> str:
        """For a person."""
        return (
            f"{kept_text(self.planned.kept, self.calls)}: a step takes {size_text(self.peak)} of "
            f"{size_text(self.budget)}, as predicted"
        )


def kept_text(kept: Kept, calls: int) -> str:
    """What calls keep, for a person."""
    stored, results = min(kept.stored, calls), min(kept.results, calls)
    shares = {
        "activations": stored,
        "their results": max(0, results - stored),
        "nothing": calls - max(stored, results),
    }
    told = ", ".join(f"{number} keep {what}" for what, number in shares.items() if number)
    return f"of {calls} calls of functions {told}"


def plan_within_budget(
    loaded: Loaded, network: Network, recipe: Train, kind: str, processes: int = 1
) -> Plan | None:
    """Plan the stages of a network whose spec has `backward: {budget: …}`, and let it come by its
    activations in that way; None where it has none. `kind` is that of the device, "cpu" or "cuda".

    The last calls come first: what they store is let go before any other is computed again, and
    takes the place of gradients that are not there yet. Raises `SpecError` where a step does not
    fit with nothing kept.
    """
    stages = planned_stages(network)
    if not stages:
        return None
    budget = _the_budget(loaded, network)
    forecast = Forecast(network.plan, kind)
    calls = all_calls(stages)
    share = recipe.model_copy(update={"batch": max(1, recipe.batch // processes)})

    def most_of(recipe: Train, way: Planned) -> int:
        return max(forecast.peak(recipe, each) for each in phases(forecast.network, way))

    def peak(more: int) -> int:
        return most_of(share, Planned(keeping(more, calls)))

    try:
        more = most_within(peak, most_kept(calls), budget)
        if more is None:
            raise SpecError([_too_much(loaded, forecast, share, budget)])
        found = Plan(Planned(keeping(more, calls)), calls, peak(more), budget)
    except CannotPredictError as error:
        message = f"this network cannot be planned: {error}"
        raise SpecError([Diagnostic("E305", message, _where(loaded, network))]) from None
    found.planned.apply(network)
    return found


def as_written(loaded: Loaded, network: Network, recipe: Train, kind: str) -> AsWritten | None:
    """The schedule of a spec whose stages have a budget, or calls that keep something; None for
    any other. Raises as `plan_within_budget` does."""
    found = plan_within_budget(loaded, network, recipe, kind)
    if found is not None:
        return AsWritten("by its budget", "budget", kept=found.planned.kept)
    if any(stage.plan.stored or stage.plan.results for stage in network.stages):
        return AsWritten("as it says", "spec")
    return None


def _where(loaded: Loaded, network: Network) -> Span | None:
    return loaded.tree.where(("stages", planned_stages(network)[0].facts.name, "backward"))


def _the_budget(loaded: Loaded, network: Network) -> int:
    """The one that all planned stages have. Raises `SpecError`."""
    first, *others = planned_stages(network)
    for stage in others:
        if stage.plan.budget != first.plan.budget:
            span = loaded.tree.where(("stages", stage.facts.name, "backward"))
            message = f"stage `{first.facts.name}` has another budget, and both are the network's"
            raise SpecError([Diagnostic("E305", message, span, "write the same in both")])
    assert first.plan.budget is not None
    return first.plan.budget


def _too_much(loaded: Loaded, forecast: Forecast, recipe: Train, budget: int) -> Diagnostic:
    least = forecast.peak(recipe, Planned())
    message = (
        f"a training step at a batch of {recipe.batch} takes {size_text(least)} with nothing "
        f"kept, and the budget is {size_text(budget)}"
    )
    most = largest_batch(lambda each: forecast.peak(each, Planned()), recipe, budget)
    if most:
        help = f"a batch of {most} fits: --set train.batch={most}, or train.accumulate"
    else:
        help = "weights and the optimizer's state alone are more than that"
    return Diagnostic("E305", message, _where(loaded, forecast.network), help)
