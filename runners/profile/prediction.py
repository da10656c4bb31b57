"""What a training step would use, without the hardware: it is run on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from archspec.training import Train
from compiler.network import build
from compiler.plan import NetworkPlan
from runners.profile.cuda_rules import AutocastAsOnCuda, CudaLedger
from runners.profile.ledger import Ledger, Use, peak_of, used
from runners.profile.schedules import Way
from runners.profile.step import TrainingStep

CPU = torch.device("cpu")


class CannotPredictError(Exception):
    """A network asks for values that tensors without any cannot give."""


class Forecast:
    """A network whose steps are predicted, for one kind of device: "cpu" or "cuda"."""

    def __init__(self, plan: NetworkPlan, kind: str) -> None:
        self.kind = kind
        with torch.device("meta"):
            self.network = build(plan)
        self._optimizers: dict[Train, Optimizer] = {}
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            self.network.to_empty(device="cpu")
        for stage in self.network.stages:  # as they are at the end of training
            stage.facts = replace(stage.facts, invertible_from=0.0)

    def use(self, recipe: Train, schedule: Way) -> Use:
        """What a step of a recipe uses. Raises `CannotPredictError`."""
        with self._taking(recipe, schedule) as (ledger, step):
            return used(ledger, step)

    def peak(self, recipe: Train, schedule: Way) -> int:
        """The peak of a step alone, which takes half the time. Raises `CannotPredictError`."""
        with self._taking(recipe, schedule) as (ledger, step):
            return peak_of(ledger, step)

    @contextmanager
    def _taking(self, recipe: Train, schedule: Way) -> Iterator[tuple[Ledger, TrainingStep]]:
        """A step to be taken, under a ledger that has counted what there is before it."""
        schedule.apply(self.network)
        try:
            with ExitStack() as stack:
                stack.enter_context(self.fake)
                stack.enter_context(torch.random.fork_rng(devices=[]))
                if self.kind == "cuda":
                    stack.enter_context(AutocastAsOnCuda())
                step = TrainingStep(self.network, recipe, CPU, self._optimizer(recipe))
                kind = CudaLedger if self.kind == "cuda" else Ledger
                ledger = stack.enter_context(kind(self.network, step.optimizer, step.average))
                ledger.hold(step.held())
                yield ledger, step
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise CannotPredictError(str(error).splitlines()[0]) from error
        finally:
            self.network.zero_grad()

    def _optimizer(self, recipe: Train) -> Optimizer:
        """The optimizer of a recipe with its state, which a first step makes."""
        key = recipe.model_copy(update={"batch": 2, "accumulate": 1})
        if key not in self._optimizers:
            step = TrainingStep(self.network, key, CPU)
            if self.kind == "cuda":  # where tensors are updated together, if not by one kernel
                for group in step.optimizer.param_groups:
                    group["foreach"] = not group.get("fused")
            step()
            self._optimizers[key] = step.optimizer
        return self._optimizers[key]
