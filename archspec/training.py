"""What a spec says of its task and its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from archspec.onekey import Kind, Model, OneKey
from archspec.shapes import Features, Shape

# Task ---------------------------------------------------------------------------------------------


class Task(Kind):
    """What a network is for."""

    def output(self, input: Shape) -> Shape:
        """What a network for it must end in, given what it begins with."""
        raise NotImplementedError

    @property
    def sizes(self) -> Mapping[str, int]:
        """Names that sizes of layers may be written with."""
        return {}


class Classify(Task):
    """One of `classes` labels for each sample."""

    kind: Literal["classify"] = "classify"
    shorthand: ClassVar[str] = "classes"
    classes: int = Field(ge=2, le=2**20)

    def output(self, input: Shape) -> Shape:
        return Features(self.classes)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"classes": self.classes}


class SparseCode(Task):
    """From measurements y = D z + noise to a code z that makes the objective of the Lasso small,
    ½|y - D z|² + penalty·|z|₁ (Gregor and LeCun 2010). The loss is that objective, and no code is
    given (as in Ablin et al. 2019; Sander et al. 2021). Functions of the form `[concat, linear,
    soft_threshold]` start as a step of ISTA."""

    kind: Literal["sparse_code"] = "sparse_code"
    shorthand: ClassVar[str] = "codes"
    codes: int = Field(ge=1, le=2**20)
    """How many numbers a code has."""
    penalty: float = Field(0.1, gt=0, le=1e6)

    def output(self, input: Shape) -> Shape:
        return Features(self.codes)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"codes": self.codes}


AnyTask = Classify | SparseCode
TaskEntry = Annotated[
    Annotated[AnyTask, Field(discriminator="kind")], OneKey("task", *AnyTask.__args__)
]


# Training -----------------------------------------------------------------------------------------


class AdamW(Kind):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.9, 0.999), strict=False, min_length=2, max_length=2
    )
    eps: float = Field(1e-8, gt=0)


class Sgd(Kind):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


AnyOptimizer = AdamW | Sgd
OptimizerEntry = Annotated[
    Annotated[AnyOptimizer, Field(discriminator="kind")],
    OneKey("optimizer", *AnyOptimizer.__args__),
]


class Cosine(Kind):
    """Along half a cosine, to `final_learning_rate`."""

    kind: Literal["cosine"] = "cosine"


class Steps(Kind):
    """Multiplied by `factor` at each of some epochs."""

    kind: Literal["steps"] = "steps"
    shorthand: ClassVar[str] = "at"
    at: tuple[Annotated[float, Field(gt=0)], ...] = Field(strict=False, min_length=1)
    """Epochs, the warm-up counted."""
    factor: float = Field(0.1, gt=0, lt=1)


AnySchedule = Cosine | Steps
ScheduleEntry = Annotated[
    Annotated[AnySchedule, Field(discriminator="kind")], OneKey("schedule", *AnySchedule.__args__)
]


class Train(Model):
    """The training recipe. The learning rate rises linearly over `warmup` epochs, then falls by its
    `schedule`. A short run warms up for half of its epochs at most."""

    epochs: int = Field(ge=1, le=100_000)
    batch: int = Field(ge=1, le=2**20)
    """Samples a step."""
    optimizer: OptimizerEntry = AdamW()
    learning_rate: float = Field(gt=0)
    """At its highest."""
    warmup: float = Field(0.0, ge=0)
    """Epochs."""
    schedule: ScheduleEntry = Cosine()
    """How the learning rate falls."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Where a cosine ends."""
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases, norms and other one-dimensional parameters."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of classification."""
    clip: float | None = Field(None, gt=0)
    """The largest norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of residual functions, under autocast; streams stay in fp32."""
    start_from: str | None = None
    """A file of weights to start from, as `archspec convert` or another run wrote it."""
    seed: int = Field(0, ge=0, lt=2**32)
