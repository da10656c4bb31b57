"""All that `archspec build` says of a network, as one typed value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from archspec.expressions import ONE, Negative, show
from archspec.spec import Learned
from compiler.canonical import reads, unlift
from compiler.counting import Cost, costs, kept_bytes_per_input, parameters
from compiler.exact import Grid
from compiler.forms import choices
from compiler.growth import linear_errors, stability
from compiler.lower import affine_inverse
from compiler.network import Network
from compiler.plan import Affine, Mapped, Permutation, StagePlan, Step, Temporary
from compiler.remedies import Prospect, prospects, recommendation
from compiler.verify import FLOAT32_TOLERANCE, RangeEnd, StageVerification, worst


@dataclass(frozen=True)
class ExactSummary:
    """The exact arithmetic of a stage."""

    resolution: float
    """The distance of neighbouring values."""
    limit: float
    """All streams stay below it, in absolute value."""
    bits: float
    """That its layers keep for each element, all streams together; where scales vary, at most."""
    bound: float
    """That any inverse must keep: the sum of log2(1/|scale|)."""
    forms: dict[str, str]
    """How each update is computed, and why so, by its text."""


@dataclass(frozen=True)
class StageSummary:
    """One stage of the network."""

    name: str
    depth: int
    backward: str
    schedule: str | None
    """The settings of `backward`, if it has any, such as `slots: 3`."""
    shape: str
    streams: dict[str, str]
    parameters: int
    macs: int | None
    update: list[str]
    inverse: list[str] | None
    """In the order in which the inverse runs; None where there is none."""
    bits_per_element: float | None
    exact: ExactSummary | None
    """None where arithmetic is that of floats."""
    inverse_growth: float | None
    warning: str | None
    """What to know before training, one matter a line."""


@dataclass(frozen=True)
class Summary:
    """A network; `macs` and bytes are for one input, and None where a module of the user's own
    cannot be counted."""

    name: str
    input: str
    output: str
    parameters: int
    macs: int | None
    norm_operations: int | None
    stem_parameters: int
    head_parameters: int
    stages: list[StageSummary]
    kept_bytes: int | None
    """Activations alive between forward and backward, float32."""
    kept_bytes_stored: int | None
    """The same with `backward: store`."""
    verification: dict[str, object] | None

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON: what is not a finite number is null."""
        plain: dict[str, object] = _finite(asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(network: Network, verification: list[StageVerification] | None) -> Summary:
    """Count and describe a network; `verification` is None where it was not run."""
    plan = network.plan
    cost = costs(plan)
    expected = {p.name: p for p in prospects(network)} if verification is not None else {}
    return Summary(
        name=plan.name,
        input=str(plan.input),
        output=str(plan.output),
        parameters=parameters(network),
        macs=_sum(c.macs for c in cost.values()),
        norm_operations=_sum(c.norms for c in cost.values()),
        stem_parameters=parameters(network.stem),
        head_parameters=parameters(network.head),
        stages=[
            _stage(
                stage.plan,
                parameters(stage),
                cost[f"stages.{stage.plan.name}"],
                verification[index] if verification else None,
                expected.get(stage.plan.name),
            )
            for index, stage in enumerate(network.stages)
        ],
        kept_bytes=kept_bytes_per_input(plan),
        kept_bytes_stored=kept_bytes_per_input(plan, "store"),
        verification=_worst(verification) if verification is not None else None,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None


def _stage(
    plan: StagePlan,
    parameter_count: int,
    cost: Cost,
    measured: StageVerification | None,
    expected: Prospect | None,
) -> StageSummary:
    stable = stability(plan) if plan.invertible else None
    return StageSummary(
        name=plan.name,
        depth=plan.depth,
        backward=plan.backward,
        schedule=_schedule(plan),
        shape=str(plan.input),
        streams={stream.name: show(stream.start) for stream in plan.streams},
        parameters=parameter_count,
        macs=cost.macs,
        update=[step.text for step in plan.steps],
        inverse=inverse_text(plan) if plan.invertible else None,
        bits_per_element=stable.bits if stable else None,
        exact=exact_summary(plan),
        inverse_growth=stable.growth if stable else None,
        warning=_warning(plan, measured, expected),
    )


def _schedule(plan: StagePlan) -> str | None:
    """The settings of a stage's backward strategy, as they are written."""
    settings = (
        f"from: {plan.invertible_from:g}" if plan.invertible_from > 0 else "",
        str(plan.checkpoints),
        f"stored: {plan.stored}" if plan.stored else "",
        f"results: {plan.results}" if plan.results else "",
        "and stored, as a budget allows" if plan.budget is not None else "",
    )
    return ", ".join(filter(None, settings)) or None


def exact_summary(plan: StagePlan) -> ExactSummary | None:
    """What exact arithmetic does to the updates of a stage; None where there is none. A form that
    differs between layers is that of the first."""
    if plan.fraction_bits is None:
        return None
    grid, chosen = Grid(plan.fraction_bits), choices(plan)
    every = [choice for layer in chosen for choice in layer if choice is not None]
    forms = {
        step.text: f"{choice.form.label}: {choice.why}"
        for step, choice in zip(plan.steps, chosen[0], strict=True)
        if choice is not None
    }
    bits, bound = sum(c.bits for c in every), sum(c.bound for c in every)
    return ExactSummary(grid.unit, grid.limit, bits, max(0.0, bound), forms)


def growth_warning(plan: StagePlan) -> str | None:
    """What the growth is predicted to make of a reversible stage's float32 streams, where it is
    too much."""
    return _lost(plan, linear_prospect(plan), "by the linear part of its layers alone")


def linear_prospect(plan: StagePlan) -> Prospect | None:
    """What to expect of a reversible stage by the linear part of its layers alone; None where
    nothing is known of it, or nothing is to be feared."""
    if plan.backward != "reversible" or not plan.invertible or plan.fraction_bits is not None:
        return None
    errors = linear_errors(plan)
    return Prospect(plan.name, max(errors), recommendation(plan)) if errors else None


def _lost(plan: StagePlan, expected: Prospect | None, way: str) -> str | None:
    """The warning of streams that drift, predicted in some way."""
    if expected is None or expected.recommendation is None:
        return None
    stable = stability(plan)
    learned = any(isinstance(c, Learned) for c in plan.constants.values())
    where = " at an end of the range of what it learns" if learned else ""
    growth = ""
    if stable and stable.growth > 2:
        growth = f" amplifies rounding {stable.growth:.3g} times{where}, and"
    return (
        f"the inverse of stage {plan.name}{growth} is predicted, {way}, to give float32 streams "
        f"back with a relative error of {expected.predicted:.2g} over {plan.store_every} layers, "
        f"and gradients with them. Use {expected.recommendation}"
    )


def _warning(
    plan: StagePlan, measured: StageVerification | None, expected: Prospect | None
) -> str | None:
    """What is predicted of float32 streams where it is too much, and what was measured where
    training may go."""
    if plan.backward != "reversible":
        return None
    # Functions that do not give the same twice say nothing about the inverse. Their gain is that of
    # the start of training; the linear part is known to its end, and may be the worse.
    repeatable = measured is None or measured.repeatable
    linear = linear_prospect(plan)
    if repeatable and expected and (linear is None or expected.predicted >= linear.predicted):
        predicted = _lost(plan, expected, "with the gain of its functions")
    else:
        predicted = growth_warning(plan)
    lines = [predicted] if predicted else []
    if measured and repeatable:
        ends = (e for e in measured.range_ends if not e.gradient_error <= FLOAT32_TOLERANCE)
        lines += [_at_range_end(plan, end) for end in ends]
    return "\n".join(lines) or None


def _at_range_end(plan: StagePlan, measured: RangeEnd) -> str:
    error = measured.gradient_error
    ranges = "its range" if len(measured.names) == 1 else "their ranges"
    ends = f"{measured.end} end" + ("" if len(measured.names) == 1 else "s")
    off = f"off by {error:.2g}" if math.isfinite(error) else "no finite numbers"
    return (
        f"where training may take {' and '.join(measured.names)}, at the {ends} of {ranges}, "
        f"gradients of stage {plan.name} are {off} (measured in float32)"
    )


def inverse_text(plan: StagePlan) -> list[str]:
    """The derived inverse as updates of the same language, in the order in which it runs. A
    temporary is computed before the first update that needs it."""
    definitions = {step.name: step for step in plan.steps if isinstance(step, Temporary)}
    lines: list[str] = []
    given: set[str] = set()

    def define(step: Step) -> None:
        for name in sorted(reads(step) & set(definitions) - given):
            define(definitions[name])
            given.add(name)
            lines.append(definitions[name].text)

    for step in reversed(plan.steps):
        if not isinstance(step, Temporary):
            define(step)
            lines.append(_inverse_step(step))
    return lines


def _inverse_step(step: Step) -> str:
    if isinstance(step, Permutation):
        return f"{', '.join(step.sources)} = {', '.join(step.targets)}"
    if isinstance(step, Mapped):
        return f"{step.target} = {step.map}⁻¹({step.target})"
    assert isinstance(step, Affine)
    if step.scale == ONE:
        negated = isinstance(step.rest, Negative)
        change = step.rest.operand if isinstance(step.rest, Negative) else step.rest
        return f"{step.target} {'+=' if negated else '-='} {show(unlift(change, step.calls))}"
    inverse = affine_inverse(step.scale, step.target, step.rest)
    return f"{step.target} = {show(unlift(inverse, step.calls))}"


def _worst(stages: list[StageVerification]) -> dict[str, object]:
    """The largest error over the stages, and the stages one by one."""

    def largest(field: str) -> float | None:
        values = [v for v in (getattr(stage, field) for stage in stages) if v is not None]
        return worst(values) if values else None

    fields = (
        "roundtrip_error",
        "roundtrip_error_float64",
        "perturbation_gain",
        "gradient_error",
        "gradient_error_float64",
    )
    return {
        "passed": all(stage.passed for stage in stages),
        **{field: largest(field) for field in fields},
        "stages": [asdict(stage) | {"passed": stage.passed} for stage in stages],
    }
