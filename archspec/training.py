"""What a spec says of its task and its training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from archspec.onekey import Kind, Model, OneKey
from archspec.shapes import Features, Shape

# Task ---------------------------------------------------------------------------------------------


class Task(Kind):
    """What a network is for."""

    def output(self, input: Shape) -> Shape | None:
        """What a network for it must end in, given what it begins with; None for anything."""
        raise NotImplementedError

    @property
    def sizes(self) -> Mapping[str, int]:
        """Names that sizes of layers may be written with."""
        return {}

    @property
    def side(self) -> Mapping[str, Shape]:
        """The side inputs that it gives, by name: what a network for it has."""
        return {}


class Generative(Task):
    """To make data like those that it is trained on."""

    classes: int | None = Field(None, ge=2, le=2**20)
    """With it, there is the side input `label`, of so many features: zeros with a one at the class
    of the sample, or none where it is not said."""

    @property
    def sizes(self) -> Mapping[str, int]:
        return {} if self.classes is None else {"classes": self.classes}

    @property
    def side(self) -> Mapping[str, Shape]:
        return {} if self.classes is None else {"label": Features(self.classes)}


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


class Density(Generative):
    """The density of the data: the network is a normalising flow, and is trained to make them
    likely (Dinh et al. 2015). Its stem and transitions are invertible, its streams start as the
    chunks of the input, and it has no head; streams that the output of a stage leaves out are
    latents. Data are dequantised by uniform noise, and what is told is bits per dimension."""

    kind: Literal["density"] = "density"
    shorthand: ClassVar[str] = "prior"
    prior: Literal["gaussian", "learned"] = "gaussian"
    """Of the latents: normal; or of learned means and scales, those of streams that are left
    behind read from the output of their stage."""
    margin: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """The network sees logits of margin + (1 - 2*margin)*share, for shares from 0 to 1; without
    it, shares less a half."""

    def output(self, input: Shape) -> Shape | None:
        return None


class FlowMatching(Generative):
    """From noise to data along straight lines: of a sample on its way, the network says the
    velocity (Lipman et al. 2023). It has the side input `time`, of one feature, from 0 at noise to
    1 at data, and ends in what it begins with."""

    kind: Literal["flow_matching"] = "flow_matching"
    shorthand: ClassVar[str] = "classes"
    unlabelled: float = Field(0.1, ge=0, le=1)
    """The share of training samples whose class is not said (Ho and Salimans 2022)."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How they are drawn in training: the second ones are more often in the middle (Esser et al.
    2024)."""

    def output(self, input: Shape) -> Shape:
        return input

    @property
    def side(self) -> Mapping[str, Shape]:
        return {"time": Features(1), **super().side}


AnyTask = Classify | SparseCode | Density | FlowMatching
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
    """Epochs, the warm-up counted, one after another."""
    factor: float = Field(0.1, gt=0, lt=1)

    @field_validator("at")
    @classmethod
    def _rise(cls, at: tuple[float, ...]) -> tuple[float, ...]:
        for one, other in pairwise(at):
            if other <= one:
                raise ValueError(f"epochs rise, and {other:g} comes after {one:g}")
        return at


AnySchedule = Cosine | Steps
ScheduleEntry = Annotated[
    Annotated[AnySchedule, Field(discriminator="kind")], OneKey("schedule", *AnySchedule.__args__)
]


class Watch(Model):
    """How often a run looks at what its inverses give back. Both go to TensorBoard."""

    roundtrip: int = Field(200, ge=1)
    """Steps from one look at the streams that the inverse of each stage gives back to the next."""
    gradient: int = Field(2000, ge=1)
    """Steps from one look at gradients beside those of stored activations to the next."""
    warn: float = Field(0.02, gt=0)
    """A relative error past which a person is told, with what cures it."""


class Train(Model):
    """The training recipe. The learning rate rises linearly over `warmup` epochs, then falls by its
    `schedule`. A short run warms up for half of its epochs at most."""

    epochs: int = Field(ge=1, le=100_000)
    max_minutes: float | None = Field(None, gt=0)
    """Of training and validation, after which the run ends as after its last epoch; the learning
    rate still falls with `epochs`."""
    patience: int | None = Field(None, ge=1)
    """Epochs without a better validation, after which the run ends."""
    batch: int = Field(ge=1, le=2**20)
    """Samples a step, of all processes together."""
    accumulate: int = Field(1, ge=1, le=2**20)
    """Parts that a batch is taken in, one after another: the same step in less memory."""
    optimizer: OptimizerEntry = AdamW()
    learning_rate: float = Field(gt=0)
    """At its highest."""
    warmup: float = Field(0.0, ge=0)
    """Epochs."""
    schedule: ScheduleEntry = Cosine()
    """How the learning rate falls."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Where a cosine ends."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The learning rate of each layer as a share of that of the next one; the head has all of it.
    For fine-tuning (Bao et al. 2022)."""
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases, norms and other one-dimensional parameters."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of classification."""
    clip: float | None = Field(None, gt=0)
    """The largest norm of the gradient."""
    ema: float | None = Field(None, gt=0, lt=1)
    """The share that an average of the weights keeps of itself in each step. The average is then
    what is validated, tested and kept. Over the first n steps the share is (1 + n)/(10 + n) at
    most, so that it forgets the weights it began with."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of residual functions. bf16 and fp16 are under autocast, streams stay in fp32; tf32 is fp32
    with products of matrices and convolutions in TF32, where a GPU has it; fp32 has it nowhere."""
    compile: bool = False
    """Compile the network by `torch.compile`."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """What several processes do: each has all weights, or a share of them."""
    watch: Watch = Watch()
    start_from: str | None = None
    """A file of weights to start from, as `archspec convert` or another run wrote it."""
    seed: int = Field(0, ge=0, lt=2**32)

    @property
    def at_once(self) -> int:
        """The samples of a batch that are taken at once: in evaluation too, which has no more
        memory."""
        return -(-self.batch // self.accumulate)

    @field_validator("accumulate")
    @classmethod
    def _parts_have_samples(cls, accumulate: int, others: ValidationInfo) -> int:
        batch = others.data.get("batch")
        if batch is not None and accumulate > batch:
            raise ValueError(f"a batch of {batch} cannot be taken in {accumulate} parts")
        return accumulate

    @field_validator("final_learning_rate")
    @classmethod
    def _falls(cls, final: float, others: ValidationInfo) -> float:
        rate = others.data.get("learning_rate")
        if rate is not None and final > rate:
            raise ValueError(f"the learning rate falls from {rate:g}, and {final:g} is above that")
        return final
