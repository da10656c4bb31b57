"""Run by torchrun in two processes: trains small networks on halves of a batch, in many ways, and
prints how far gradients and weights are from those of one process with the whole batch, as JSON."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from small_networks import BRANCH, CONVOLUTION, STRATEGIES, additive, network
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import archspec
from compiler.network import Network

Weights = dict[str, Tensor]
Wrapped = Any
Wrap = Callable[[nn.Module], Wrapped]

STEPS = 2
MIX = [{"linear": "channels"}, "tanh"]


def momentum(**gamma: Any) -> dict[str, Any]:
    return {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99], **gamma}},
    }


STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "momentum": momentum(per="channel"),
    "scalar": momentum(),
    "affine": {
        "depth": 2,
        "coupling": "affine",
        "functions": {"S": MIX, "T": BRANCH, "U": MIX, "V": BRANCH},
    },
    "shared": additive(share=True),
    "maps": {
        "depth": 2,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": BRANCH, "G": BRANCH},
        "maps": {"A": "actnorm", "W": "invertible_linear"},
        "update": ["x = A(x)", "x += F(y)", "y = W(y)", "y += G(x)"],
        "output": "x + y",
    },
}

STAGES["exact"] = {**STAGES["momentum"], "arithmetic": "exact"}
STAGES["exact_maps"] = {**STAGES["maps"], "arithmetic": "exact"}

# Ways to train -----------------------------------------------------------------------------------


def shard(model: nn.Module, **keys: Any) -> Wrapped:
    assert isinstance(model, Network)
    return archspec.shard(model, **keys)


def ddp(model: nn.Module, **keys: Any) -> Wrapped:
    return DistributedDataParallel(model, **keys)


class WithUnused(nn.Module):
    """A network beside a module that takes no part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.model(value)
        return result


def whole(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """One forward and one backward pass."""
    value = torch.cat([value for value, _ in batches])
    wanted = torch.cat([wanted for _, wanted in batches])
    loss(model, value, wanted).backward()


def two_forwards(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Two forward passes before one backward pass."""
    first, second = (loss(model, *batch) for batch in batches)
    ((first + second) / 2).backward()


def accumulated(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Two backward passes; processes talk in the second."""
    first, second = batches
    with silent(model):
        (loss(model, *first) / 2).backward()
    (loss(model, *second) / 2).backward()


def silent(model: Wrapped) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return silent_shards(model) if isinstance(model, FSDPModule) else nullcontext()


class silent_shards:
    def __init__(self, model: FSDPModule) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self.model.set_requires_gradient_sync(True)


def loss(model: Wrapped, value: Tensor, wanted: Tensor) -> Tensor:
    return (model(value) - wanted).square().mean()


WAYS: dict[str, tuple[Wrap, Callable[..., None]]] = {
    "ddp": (ddp, whole),
    "ddp_static": (lambda m: ddp(m, static_graph=True), whole),
    "ddp_unused": (lambda m: ddp(WithUnused(m), find_unused_parameters=True), whole),
    "ddp_two_forwards": (ddp, two_forwards),
    "ddp_accumulated": (ddp, accumulated),
    "ddp_static_two_forwards": (lambda m: ddp(m, static_graph=True), two_forwards),
    "ddp_unused_two_forwards": (
        lambda m: ddp(WithUnused(m), find_unused_parameters=True),
        two_forwards,
    ),
    "fsdp": (lambda m: shard(m, reshard_after_forward=True), whole),
    "fsdp_kept": (lambda m: shard(m, reshard_after_forward=False), whole),
    "fsdp_two_forwards": (shard, two_forwards),
    "fsdp_kept_two_forwards": (lambda m: shard(m, reshard_after_forward=False), two_forwards),
    "fsdp_accumulated": (shard, accumulated),
}

# Comparing ---------------------------------------------------------------------------------------


def batches_for(input: tuple[int, ...], share: slice) -> list[tuple[Tensor, Tensor]]:
    """This process's part of two batches."""
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    return [(draw(4, *input)[share], draw(4, 3)[share]) for _ in range(2)]


def train(model: Wrapped, backward: Callable[..., None], batches: Any) -> Iterator[Weights]:
    """The gradients of the last step, then the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(model, batches)
        optimizer.step()
    yield {n: p.grad for n, p in parameters(model) if p.grad is not None}
    yield dict(parameters(model))


def parameters(model: Wrapped) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if "unused" not in name:
            yield name.replace("module.", "").removeprefix("model."), parameter


def gathered(found: Iterator[Weights]) -> list[Weights]:
    return [{name: full(tensor) for name, tensor in weights.items()} for weights in found]


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def error(found: list[Weights], wanted: list[Weights]) -> float:
    """The largest difference relative to each tensor's largest element, or to a thousandth of the
    largest of all where a tensor all but vanishes."""
    worst = 0.0
    for some, others in zip(found, wanted, strict=True):
        assert some.keys() == others.keys()
        least = 1e-3 * max(float(tensor.abs().max()) for tensor in others.values())
        for name, tensor in others.items():
            difference = (some[name].view(tensor.shape) - tensor).abs().max()
            worst = max(worst, float(difference / tensor.abs().max().clamp(min=least)))
    return worst


def own_share() -> slice:
    rank = dist.get_rank()
    return slice(2 * rank, 2 * rank + 2)


def compare(stage: dict[str, Any], strategy: str, way: str, **settings: Any) -> Callable[[], float]:
    """A case: the error against one process, stored activations and the whole batch."""

    def run() -> float:
        wrap, backward = WAYS[way]
        model = wrap(network(stage, **settings).set_backward(strategy))
        input = INPUTS.get(next(iter(settings.get("input", {})), ""), (5, 6))
        found = gathered(train(model, backward, batches_for(input, own_share())))
        return error(found, alone(json.dumps((stage, settings)), input))

    return run


@lru_cache
def alone(text: str, input: tuple[int, ...]) -> list[Weights]:
    """What one process finds."""
    stage, settings = json.loads(text)
    model = network(stage, **settings).set_backward("store")
    return gathered(train(model, whole, batches_for(input, slice(None))))


INPUTS = {"image": (2, 8, 8)}
IMAGES = {"input": {"image": [2, 8, 8]}}


def convolutions() -> dict[str, Any]:
    return {
        **additive(CONVOLUTION, CONVOLUTION),
        "transition": [{"conv": {"out": 6}}, "tanh"],
    }


# Other cases -------------------------------------------------------------------------------------


def hooks_fire_once(strategy: str, **keys: Any) -> Callable[[], float]:
    """The largest number of times that a parameter's hook runs in one backward pass, less one."""

    def run() -> float:
        model = ddp(network(STAGES["momentum"]).set_backward(strategy), **keys)
        counts = dict.fromkeys((name for name, _ in model.named_parameters()), 0)

        def count(name: str) -> Callable[[Tensor], None]:
            def hook(_: Tensor) -> None:
                counts[name] += 1

            return hook

        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(count(name))
        for _ in range(STEPS):
            whole(model, batches_for((5, 6), own_share()))
        return max(abs(number - STEPS) for number in counts.values())

    return run


def refused(run: Callable[[], object], message: str) -> Callable[[], float]:
    """0 where this is an error that says so."""

    def attempt() -> float:
        try:
            run()
        except (RuntimeError, TypeError, ValueError) as found:
            return 0.0 if message in str(found) else complain(found)
        return complain("no error")

    return attempt


def complain(found: object) -> float:
    raise AssertionError(found)


def changed_before_backward(strategy: str) -> Callable[[], None]:
    def run() -> None:
        model = shard(network(STAGES["momentum"]).set_backward(strategy))
        batches = batches_for((5, 6), own_share())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        whole(model, batches)
        value = loss(model, *batches[0])
        optimizer.step()
        value.backward()

    return run


def second_gradient() -> None:
    model = shard(network(additive()))
    value = batches_for((5, 6), own_share())[0][0].requires_grad_()
    torch.autograd.grad(model(value).sum(), value, create_graph=True)


def shard_twice() -> None:
    shard(shard(network(additive())))


def shard_wrapped() -> None:
    archspec.shard(ddp(network(additive())))  # type: ignore[arg-type]


def layers_as_units() -> None:
    """Layers are not called, so that FSDP never gathers what they hold."""
    model = network(additive())
    for layer in model.stages[0].layers:
        fully_shard(layer)
    fully_shard(model)
    model(batches_for((5, 6), own_share())[0][0])


def units() -> float:
    """Functions that layers share are one unit; so are those that they do not share."""
    shared = shard(network(STAGES["shared"]))
    own = shard(network(additive()))
    numbers = [sum(isinstance(m, FSDPModule) for m in model.modules()) for model in (shared, own)]
    return 0.0 if numbers == [2 + 2, 6 + 2] else complain(numbers)


def mixed_precision(strategy: str) -> Callable[[], float]:
    """Functions in bfloat16 between streams in float32: gradients are those of stored activations,
    but for the rounding of what is reconstructed, which may tip one in bfloat16."""

    def run() -> float:
        found, dtypes = [], set[torch.dtype]()
        for backward in (strategy, "store"):
            model = network(STAGES["momentum"], torch.float32).set_backward(backward)
            shard(
                model,
                mp_policy=MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32),
                offload_policy=CPUOffloadPolicy(pin_memory=False),
            )
            stage = model.stages[0]
            stage.layers[0].F.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
            stage.register_forward_hook(lambda m, i, o: dtypes.add(o[0].dtype))
            value = batches_for((5, 6), own_share())[0][0].float()
            model(value).float().square().sum().backward()
            found.append(gathered(iter([{n: p.grad for n, p in parameters(model)}])))
        assert dtypes == {torch.bfloat16, torch.float32}
        return 0.0 if error(*found) < 1e-2 else complain(error(*found))

    return run


def loads_scalars() -> float:
    """Scalar coefficients are sharded as vectors, and load from scalars and as scalars."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    model, other = shard(network(STAGES["scalar"])), network(momentum(learn=0.7), seed=7)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, other.state_dict(), options=options)
    back = network(STAGES["scalar"])
    found = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        back.load_state_dict(found)
        return error(*(gathered(iter([dict(m.named_parameters())])) for m in (back, other)))
    return 0.0


OTHERS = {
    "shared": ("ddp", "ddp_static", "fsdp", "fsdp_two_forwards", "fsdp_kept_two_forwards"),
    "maps": ("ddp", "fsdp"),
    "scalar": ("ddp", "fsdp", "fsdp_accumulated"),
    "exact": ("ddp", "ddp_static", "fsdp", "fsdp_two_forwards"),
    "exact_maps": ("ddp", "fsdp"),
}
CHANGED = "changed in place between the forward and the backward"
REPLAYED = ("checkpoint", "reversible")

CASES: dict[str, Callable[[], float]] = {
    **{
        f"{name}-{strategy}-{way}": compare(STAGES[name], strategy, way)
        for name, strategy, way in product(("additive", "momentum", "affine"), STRATEGIES, WAYS)
    },
    **{
        f"{name}-{strategy}-{way}": compare(STAGES[name], strategy, way)
        for name, ways in OTHERS.items()
        for strategy, way in product(REPLAYED, ways)
    },
    **{
        f"images-{strategy}-{way}": compare(convolutions(), strategy, way, **IMAGES)
        for strategy, way in product(REPLAYED, ("ddp_static", "fsdp"))
    },
    **{f"hooks-{s}": hooks_fire_once(s) for s in STRATEGIES},
    **{f"hooks-{s}-static": hooks_fire_once(s, static_graph=True) for s in STRATEGIES},
    **{f"mixed-{strategy}": mixed_precision(strategy) for strategy in REPLAYED},
    **{f"changed-{s}": refused(changed_before_backward(s), CHANGED) for s in REPLAYED},
    "second-gradient": refused(second_gradient, "no gradient of its gradient"),
    "twice": refused(shard_twice, "sharded already"),
    "wrapped": refused(shard_wrapped, "shard takes a network"),
    "layers-as-units": refused(layers_as_units, "mixed torch.Tensor and DTensor"),
    "units": units,
    "loads-scalars": loads_scalars,
}


def outcome(name: str, run: Callable[[], float]) -> float | str:
    print(name, file=sys.stderr, flush=True)  # shown if a process crashes: it was in this case
    try:
        return run()
    except Exception:
        return traceback.format_exc()


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    warnings.simplefilter("error")
    faulthandler.enable()
    results = {name: outcome(name, run) for name, run in CASES.items()}
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, results)
    if dist.get_rank() == 0:
        print(json.dumps({name: [each[name] for each in everyone] for name in CASES}), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # on PyTorch 2.11, gloo's threads now and then abort the interpreter's own exit


if __name__ == "__main__":
    main()
