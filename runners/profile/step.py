"""One training step of a network on random inputs, as a recipe takes it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from archspec.training import Train
from compiler.network import Network
from compiler.plan import NetworkPlan
from runners.optim import build_optimizer

Side = dict[str, Tensor]
"""Side inputs, by name."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStep:
    """Forward, backward and the optimizer's step, one by one or all together."""

    def __init__(
        self,
        network: Network,
        recipe: Train,
        device: torch.device,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.network, self.recipe, self.device = network.train(), recipe, device
        self.optimizer = optimizer or build_optimizer(network, recipe)
        averaged = [*network.parameters(), *network.buffers()] if recipe.ema else []
        self.average = [tensor.detach().clone() for tensor in averaged]

    def __call__(self) -> None:
        """A whole step."""
        self.optimizer.zero_grad()  # as training does: until then they are there
        inputs, side = self.inputs()
        for part in self.parts(inputs, side):
            self.backward(self.forward(*part))
        del inputs, side
        self.update()

    def parts(self, inputs: Tensor, side: Side) -> list[tuple[Tensor, Side]]:
        """What a batch is split into. Of several parts, two: the second one is taken beside the
        gradients of the first, as all that follow are."""
        count = min(self.recipe.accumulate, len(inputs))
        pieces = [inputs.tensor_split(count), *(s.tensor_split(count) for s in side.values())]
        return [
            (first, dict(zip(side, others, strict=True)))
            for first, *others in list(zip(*pieces, strict=True))[:2]
        ]

    def held(self) -> list[Tensor]:
        """What there is between steps: parameters, buffers, their average, optimizer state."""
        state = (s for kept in self.optimizer.state.values() for s in kept.values())
        tensors = [s for s in state if isinstance(s, Tensor)]
        return [*self.network.parameters(), *self.network.buffers(), *self.average, *tensors]

    def inputs(self) -> tuple[Tensor, Side]:
        """A batch, all of which is on the device."""
        plan, count = self.network.plan, self.recipe.batch
        side = {
            each.name: torch.randn(count, *each.shape.sizes, device=self.device)
            for each in plan.side
        }
        return torch.randn(count, *plan.input.sizes, device=self.device), side

    def forward(self, inputs: Tensor, side: Side) -> Tensor:
        """The loss."""
        dtype = DTYPES.get(self.recipe.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss = loss_like(self.network.plan, self.network(inputs, **side), self.recipe)
        return loss + self.network.penalty()

    def backward(self, loss: Tensor) -> None:
        """The gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()


def loss_like(plan: NetworkPlan, outputs: Tensor, recipe: Train) -> Tensor:
    """A loss, (), of outputs (B, …) that takes what that of the network's task takes."""
    if outputs.dim() == 2 and "classes" in plan.sizes:
        labels = torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
        return F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)
    if plan.prior is not None:  # a log-density
        return -outputs.mean()
    return outputs.float().square().mean()
