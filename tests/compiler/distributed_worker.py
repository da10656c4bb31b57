"""Run by torchrun in two processes: prints what each finds in every case as JSON, an error, or how
the case failed."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from distributed_training import (
    IMAGES,
    STAGES,
    STEPS,
    WAYS,
    batches_for,
    compare,
    convolutions,
    ddp,
    error,
    gathered,
    loss,
    momentum,
    own_share,
    parameters,
    shard,
    whole,
)
from small_networks import STRATEGIES, additive, network
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

import archspec


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
    """Functions that layers share are one unit; those that they do not share are one each, and so
    are those that streams start from. The head and the network are two more."""
    models = [shard(network(STAGES[name])) for name in ("shared", "additive", "started")]
    numbers = [sum(isinstance(m, FSDPModule) for m in model.modules()) for model in models]
    return 0.0 if numbers == [2 + 2, 6 + 2, 2 + 4 + 2] else complain(numbers)


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


def penalty_after_forward() -> float:
    """While functions stay gathered in bfloat16, the penalty is that of weights in float32."""
    model = network(STAGES["smooth"], torch.float32)
    wanted = float(model.penalty().detach())
    shard(model, reshard_after_forward=False, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    model(batches_for((5, 6), own_share())[0][0].float())
    found = model.penalty()
    found.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for _, p in parameters(model) if p.grad is not None]
    assert gradients
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    off = abs(float(found.detach()) / wanted - 1)
    return 0.0 if off < 1e-6 else complain(off)


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
    "smooth": ("ddp", "fsdp", "fsdp_kept", "fsdp_two_forwards", "fsdp_accumulated"),
    "started": ("ddp", "ddp_static", "fsdp", "fsdp_kept", "fsdp_two_forwards"),
    "maps": ("ddp", "fsdp"),
    "scalar": ("ddp", "fsdp", "fsdp_accumulated"),
    "results": ("ddp", "ddp_static", "fsdp", "fsdp_kept", "fsdp_two_forwards", "fsdp_accumulated"),
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
    "penalty-after-forward": penalty_after_forward,
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
