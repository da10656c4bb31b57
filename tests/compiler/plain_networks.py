"""Networks of every coupling beside twins that evaluate its equations under plain autograd."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from coupling_equations import (
    COUPLING_FILES,
    EQUATIONS,
    FUNCTIONS,
    OUTPUTS,
    PAIRS,
    SPLIT_IN_HALVES,
    VELOCITIES,
)
from small_networks import BRANCH, error, network
from torch import Tensor, nn

from compiler.network import Network

Wanted = list[Tensor | None]
Function = Callable[..., Tensor]
Run = Callable[[Any], Wanted]

INPUT: dict[str, Any] = {"tokens": [3, 6]}
STEM: list[Any] = [{"linear": 6}]
TRANSPOSED: list[Any] = [{"transpose_pair": {"activation": "tanh"}}]


@dataclass(frozen=True)
class Case:
    """One cell of the matrix: a coupling with a strategy."""

    coupling: str
    strategy: str

    @property
    def names(self) -> tuple[str, ...]:
        """The coupling's functions."""
        return tuple(FUNCTIONS.get(self.coupling, "F"))


@dataclass(frozen=True)
class Form:
    """What is written around every call of a coupling's functions, and what that means."""

    text: str = ""
    apply: Callable[[Function, Tensor, Mapping[str, Tensor]], Tensor] = lambda f, x, values: f(x)
    constants: Mapping[str, Any] = field(default_factory=dict)
    learn: Callable[[float], dict[str, Any]] | None = None
    """Makes a learned constant of each of the coupling's own."""


BARE = Form()
TWO_ARGUMENTS = Form("{F}({x}, tanh({x}))", lambda f, x, values: f(x, torch.tanh(x)))
MASKED = Form("{F}({x}, mask)", lambda f, x, values: f(x, values["mask"]))
TIMED = Form("{F}({x}, time)", lambda f, x, values: f(x, values["time"]))
PULLED = Form("tanh(pull)*{F}({x})", lambda f, x, values: torch.tanh(values["pull"]) * f(x))
OF_STREAMS = Form("sigmoid({x})*{F}({x})", lambda f, x, values: torch.sigmoid(x) * f(x))


def _learned(per: str) -> Form:
    return Form(
        "scale*{F}({x})",
        lambda f, x, values: values["scale"] * f(x),
        {"scale": {"learn": 0.8, "per": per}},
        lambda value: {"learn": value, "within": [value / 2, 1.1 * value], "per": per},
    )


DRAWN = Form(
    "scale*{F}({x})",
    lambda f, x, values: values["scale"] * f(x),
    {"scale": {"draw": [0.5, 1.5], "per": "sample", "evaluate": 1.0}},
)
LEARNED, PER_CHANNEL = _learned("layer"), _learned("channel")


def stage_spec(case: Case, form: Form = BARE, **keys: Any) -> dict[str, Any]:
    """A stage of the coupling, its calls written in a form."""
    layers = TRANSPOSED if case.coupling in PAIRS else BRANCH
    stage: dict[str, Any] = {
        "depth": 2,
        "coupling": case.coupling,
        "functions": dict.fromkeys(case.names, layers),
        "backward": case.strategy,
    }
    if form.text:
        given = yaml.safe_load((COUPLING_FILES / f"{case.coupling}.yaml").read_text("utf-8"))
        lines = [
            re.sub(
                r"([A-Z])\(([^()]*)\)",
                lambda call: form.text.format(F=call[1], x=call[2]),
                line,
            )
            for line in given["update"]
        ]
        constants = dict(given.get("constants", {}))
        if form.learn:
            fixed = {n: v for n, v in constants.items() if isinstance(v, float)}
            constants.update({name: form.learn(value) for name, value in fixed.items()})
        del stage["coupling"]
        stage.update(streams=given["streams"], output=given["output"], update=lines)
        stage["constants"] = {**constants, **form.constants}
    return {**stage, **keys}


class PlainStage(nn.Module):
    """The coupling's equations over the modules of a stage, with the same names."""

    def __init__(self, stage: Any, coupling: str, form: Form) -> None:
        super().__init__()
        self.coupling, self.form = coupling, form
        self.starts = stage.starts
        if hasattr(stage, "shared"):
            self.shared = stage.shared
        self.layers = stage.layers

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The streams by hand: the last one may start from a function."""
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()  # streams stay in full precision under autocast
        count = len(self.facts_of_streams())
        zeros = VELOCITIES.get(self.coupling, 0)
        if self.coupling in SPLIT_IN_HALVES:
            streams = list(torch.chunk(value, 2, -1 if value.dim() < 4 else 1))
        else:
            streams = [value] * (count - zeros) + [torch.zeros_like(value)] * zeros
        for function in self.starts.values():
            streams[-1] = function(value)
        return tuple(streams)

    def facts_of_streams(self) -> Sequence[str]:
        """The names of the streams: the equations' positional arguments after the functions."""
        given = yaml.safe_load((COUPLING_FILES / f"{self.coupling}.yaml").read_text("utf-8"))
        return list(given["streams"])

    def draw(self, like: Tensor) -> list[dict[str, Tensor]]:
        """One of two values per sample in training: BDIA's signs, and what the form draws."""
        drawn = {
            n: (c["draw"], c["evaluate"]) for n, c in self.form.constants.items() if "draw" in c
        }
        if self.coupling == "bdia":
            drawn = {"gamma": ([0.5, -0.5], 0.0), **drawn}
        shape = (len(like), *(1,) * (like.dim() - 1))
        return [
            {
                name: like.new_tensor(both)[torch.randint(2, shape)]
                if self.training
                else like.new_full(shape, in_evaluation)
                for name, (both, in_evaluation) in drawn.items()
            }
            for _ in self.layers
        ]

    def forward(self, *streams: Tensor, draws: Sequence[Any] | None = None, **side: Tensor) -> Any:
        """The equations, layer by layer."""
        draws = self.draw(streams[0]) if draws is None else draws
        for layer, drawn in zip(self.layers, draws, strict=True):
            values = {**self.coefficients(layer, streams[0].dim()), **drawn}
            around = {**values, **side}
            functions = Calls(getattr(self, "shared", layer), self.form, around)
            own = {name: value for name, value in values.items() if name != "scale"}
            streams = EQUATIONS[self.coupling](functions, *streams, **own)
        return streams

    def coefficients(self, layer: Any, dimensions: int) -> dict[str, Tensor]:
        """Learned constants: a parameter, or the sigmoid of one between two bounds."""
        values = {}
        for name, parameter in layer.coefficients.named_parameters():
            constant = {**self.form.constants}.get(name)
            shape = (-1, 1, 1) if parameter.dim() and dimensions == 4 else parameter.shape
            value = parameter.view(shape)
            if constant is None:
                low, high = layer.coefficients.learned[name].within
                value = low + (high - low) * torch.sigmoid(value)
            values[name] = value
        return values

    def merge(self, *streams: Tensor) -> Tensor:
        """What leaves the stage."""
        dimension = -1 if streams[0].dim() < 4 else 1
        if self.coupling in ("additive", "affine", "verlet", "momentum_pair"):
            return torch.cat(streams[:2], dimension)
        return OUTPUTS.get(self.coupling, lambda first, *others: first)(*streams)


class Calls:
    """A layer's functions as the equations call them; results have the dtype of the streams."""

    def __init__(self, functions: nn.Module, form: Form, values: Mapping[str, Tensor]) -> None:
        self.functions, self.form, self.values = functions, form, values

    def __getattr__(self, name: str) -> Callable[[Tensor], Tensor]:
        function = getattr(self.functions, name)

        def cast(*arguments: Tensor) -> Tensor:
            result: Tensor = function(*arguments)
            return result.to(arguments[0].dtype)

        return lambda x: self.form.apply(cast, x, self.values)


class PlainNetwork(nn.Module):
    """A network with the same modules, under the same names."""

    def __init__(self, model: Network, coupling: str, form: Form) -> None:
        super().__init__()
        self.stem = model.stem
        stage = PlainStage(model.stages["trunk"], coupling, form)
        self.stages = nn.ModuleDict({"trunk": stage})
        self.head = model.head

    def forward(self, value: Tensor, **side: Tensor) -> Tensor:
        """stem → stage → head."""
        stage = self.stages["trunk"]
        assert isinstance(stage, PlainStage)
        result: Tensor = self.head(stage.merge(*stage(*stage.split(self.stem(value)), **side)))
        return result


def pair(
    case: Case,
    form: Form = BARE,
    *,
    dtype: torch.dtype = torch.float64,
    stem: Sequence[Any] = STEM,
    input: Mapping[str, Any] = INPUT,
    side: Mapping[str, Any] | None = None,
    **keys: Any,
) -> tuple[PlainNetwork, Network]:
    """A plain network and a compiled one, with the same weights, and nothing shared."""
    stage = stage_spec(case, form, **keys)
    plain, model = (network(stage, dtype, stem=stem, input=input, side=side) for _ in range(2))
    return PlainNetwork(plain, case.coupling, form), model


def is_plain(model: nn.Module) -> bool:
    """Whether this is the twin."""
    return isinstance(model, PlainNetwork)


def trunk(model: Any) -> Any:
    """The one stage."""
    return model.stages["trunk"]


def value(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch for `INPUT`."""
    return scale * normal((2, 3, 6), seeded(7), dtype)


def seeded(seed: int) -> torch.Generator:
    """A generator apart from the global one."""
    return torch.Generator("cpu").manual_seed(seed)


def normal(
    shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random numbers, the same ones on every device, on the one that is the default."""
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def streams_of(model: Any, seed: int = 1) -> list[Tensor]:
    """Random streams for the one stage, all different."""
    generator, dtype = seeded(seed), next(model.parameters()).dtype
    with torch.no_grad():
        like = trunk(model).split(value(dtype=dtype))
    return [normal(stream.shape, generator, dtype) for stream in like]


def same_draws(model: Any) -> None:
    """Let BDIA draw the same signs in every pass, so that passes can be compared."""
    stage = trunk(model)
    draws = stage.draw(streams_of(model)[0])
    stage.draw = lambda like: draws


def gradients(model: nn.Module) -> Wanted:
    """What has been accumulated."""
    return [parameter.grad for parameter in model.parameters()]


def backward(outputs: Any, **keys: Any) -> None:
    """The backward pass of a loss in which no two elements of the outputs count alike."""
    loss_of(outputs).backward(**keys)


def loss_of(outputs: Any) -> Tensor:
    """Such a loss."""
    generator = seeded(2)
    total = torch.zeros(())
    for out in [outputs] if isinstance(outputs, Tensor) else outputs:
        weights = normal(out.shape, generator, out.dtype)
        total = total + (out * weights).sum() + 0.1 * out.square().sum()
    return total


def assert_alike(found: Wanted, wanted: Wanted, bound: float = 1e-12) -> None:
    """Each tensor, relative to the largest element; what all but vanishes (the gradient of a bias
    before a normalisation is nothing but rounding) against the others."""
    assert len(found) == len(wanted) > 0
    least = 1e-3 * max(float(g.detach().abs().max()) for g in wanted if g is not None)
    for a, b in zip(found, wanted, strict=True):
        assert error(a, b, least) < bound


def assert_as_plain(
    case: Case,
    run: Run,
    form: Form = BARE,
    *,
    change: Callable[[Any], None] = lambda model: None,
    bound: float = 1e-12,
    **keys: Any,
) -> None:
    """`run` gives the same with the compiled network as with the plain one; `change` is done to
    both before."""
    results = []
    for model in pair(case, form, **keys):
        torch.manual_seed(4)
        change(model)
        torch.manual_seed(5)
        results.append(run(model))
    assert_alike(results[1], results[0], bound)
