"""All that `archspec build` says of a network, as one typed value."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from archspec.expressions import ONE, Negative, show
from compiler.counting import Cost, costs, kept_bytes, parameters
from compiler.growth import stability
from compiler.lower import affine_inverse
from compiler.network import Network
from compiler.plan import Affine, Permutation, StagePlan, Step, Temporary
from compiler.verify import StageVerification

DRIFT_WARNING = 1e-3
"""A predicted relative error of float32 streams past which gradients are spoilt."""


@dataclass(frozen=True)
class StageSummary:
    """One stage of the network."""

    name: str
    depth: int
    backward: str
    shape: str
    streams: dict[str, str]
    parameters: int
    macs: int
    update: list[str]
    inverse: list[str] | None
    """In the order in which the inverse runs; None where there is none."""
    bits_per_element: float | None
    inverse_growth: float | None
    warning: str | None


@dataclass(frozen=True)
class Summary:
    """A network; `macs` and bytes are for one input."""

    name: str
    input: str
    output: str
    parameters: int
    macs: int
    norm_operations: int
    stem_parameters: int
    head_parameters: int
    stages: list[StageSummary]
    kept_bytes: int
    """Activations alive between forward and backward, float32."""
    kept_bytes_stored: int
    """The same with `backward: store`."""
    verification: dict[str, object] | None

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def summarise(network: Network, verification: list[StageVerification] | None) -> Summary:
    """Count and describe a network; `verification` is None where it was not run."""
    plan = network.plan
    cost = costs(plan)
    return Summary(
        name=plan.name,
        input=str(plan.input),
        output=str(plan.output),
        parameters=parameters(network),
        macs=sum(c.macs for c in cost.values()),
        norm_operations=sum(c.norms for c in cost.values()),
        stem_parameters=parameters(network.stem),
        head_parameters=parameters(network.head),
        stages=[
            _stage(stage.plan, parameters(stage), cost[f"stages.{stage.plan.name}"])
            for stage in network.stages
        ],
        kept_bytes=kept_bytes(plan),
        kept_bytes_stored=kept_bytes(plan, "store"),
        verification=_worst(verification) if verification is not None else None,
    )


def _stage(plan: StagePlan, parameter_count: int, cost: Cost) -> StageSummary:
    stable = stability(plan) if plan.invertible else None
    warning = None
    if stable and plan.backward == "reversible" and stable.float32_error > DRIFT_WARNING:
        warning = (
            f"the inverse of stage {plan.name} amplifies rounding {stable.growth:.3g} times over "
            f"{plan.depth} layers: expect float32 streams to come back with a relative error of "
            f"about {stable.float32_error:.2g}, and gradients with them. Use fewer layers, scales "
            "nearer to 1, or `backward: checkpoint`"
        )
    return StageSummary(
        name=plan.name,
        depth=plan.depth,
        backward=plan.backward,
        shape=str(plan.input),
        streams={stream.name: show(stream.start) for stream in plan.streams},
        parameters=parameter_count,
        macs=cost.macs,
        update=[step.text for step in plan.steps],
        inverse=inverse_text(plan) if plan.invertible else None,
        bits_per_element=stable.bits if stable else None,
        inverse_growth=stable.growth if stable else None,
        warning=warning,
    )


def inverse_text(plan: StagePlan) -> list[str]:
    """The derived inverse as updates of the same language, in the order in which it runs."""
    steps = [*reversed(plan.steps)]
    return [_inverse_step(step) for step in steps if not isinstance(step, Temporary)]


def _inverse_step(step: Step) -> str:
    if isinstance(step, Permutation):
        return f"{', '.join(step.sources)} = {', '.join(step.targets)}"
    assert isinstance(step, Affine)
    if step.scale == ONE:
        negated = isinstance(step.rest, Negative)
        change = step.rest.operand if isinstance(step.rest, Negative) else step.rest
        return f"{step.target} {'+=' if negated else '-='} {_with_calls(show(change), step)}"
    inverse = affine_inverse(step.scale, step.target, step.rest)
    return f"{step.target} = {_with_calls(show(inverse), step)}"


def _with_calls(text: str, step: Affine) -> str:
    """Calls written out again in place of their names."""
    for call in reversed(step.calls):
        written = f"{call.function}({', '.join(map(show, call.arguments))})"
        text = text.replace(call.result, written)
    return text


def _worst(stages: list[StageVerification]) -> dict[str, object]:
    """The largest error over the stages, and the stages one by one."""

    def largest(field: str) -> float | None:
        values = [v for v in (getattr(stage, field) for stage in stages) if v is not None]
        # max() would pass over a NaN that does not come first.
        return next((v for v in values if v != v), max(values, default=None))

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
