"""Networks over several processes: what FSDP gathers and frees together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from compiler import engine
from compiler.coefficients import Coefficients
from compiler.network import Network


def shard(
    network: Network,
    mesh: DeviceMesh | None = None,
    *,
    reshard_after_forward: bool | int | None = None,
    mp_policy: MixedPrecisionPolicy | None = None,
    offload_policy: OffloadPolicy | None = None,
) -> Network:
    """Shard a network's parameters over processes with FSDP2, in place; returns the network.

    Every residual function is a unit of its own, and every function that a stream starts from: the
    engine calls functions, in a replay too, and FSDP gathers parameters around calls. A layer is
    never called, so as a unit it would stay sharded. The stem, transitions and the head are units
    as well. What updates read outside of any call (learned coefficients, invertible maps) belongs
    to the network's own unit, which stays gathered from the forward pass to the end of the backward
    pass.

    The keys are those of `torch.distributed.fsdp.fully_shard`; by default the mesh is all
    processes. `mp_policy` is for the units that compute: streams and coefficients keep their dtype.

    Build the network from the same seed in every process, or load the same weights, before; make
    the optimizer afterwards. Then call the network itself, not one of its stages. A coefficient of
    shape () becomes one of shape (1,), since FSDP shards no scalars; either loads as the other.
    The gradient of a gradient is refused: FSDP frees parameters that it would need.

    Raises TypeError for anything but a network, ValueError for one that is sharded, and
    RuntimeError where there is neither a mesh nor a process group.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"shard takes a network as archspec.build gives it, found {type(network).__name__}"
        )
    if any(isinstance(module, FSDPModule) for module in network.modules()):
        raise ValueError("this network, or a part of it, is sharded already")
    if mesh is None and not is_initialized():
        raise RuntimeError("shard needs processes: call torch.distributed.init_process_group first")
    keys: dict[str, Any] = {"mesh": mesh, "offload_policy": offload_policy or OffloadPolicy()}
    policy = mp_policy or MixedPrecisionPolicy()
    unit_keys = {**keys, "reshard_after_forward": reshard_after_forward}
    for module in _with_parameters([*_functions(network), network.head]):
        fully_shard(module, mp_policy=policy, **unit_keys)
    for module in _with_parameters([network.stem, *(s.transition for s in network.stages)]):
        to_streams = replace(policy, output_dtype=next(module.parameters()).dtype)
        fully_shard(module, mp_policy=to_streams, **unit_keys)
    for module in network.modules():
        if isinstance(module, Coefficients):
            _without_scalars(module)
    exact = replace(policy, param_dtype=None, cast_forward_inputs=False)
    fully_shard(network, mp_policy=exact, **{**keys, "reshard_after_forward": False})
    network.register_forward_hook(_refuse_second_gradients)
    return network


def _functions(network: Network) -> list[nn.Module]:
    """Stage by stage the functions that streams start from, and the residual functions of each
    layer; those that layers share come again and again."""
    started = [function for stage in network.stages for function in stage.starts.values()]
    return started + [
        layer.functions[call.function]
        for stage in network.stages
        for layer in stage.program()
        for step in layer.steps
        if isinstance(step, engine.Update)
        for call in step.calls
    ]


def _with_parameters(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Each module once, if there is anything to shard."""
    for module in dict.fromkeys(modules):
        if any(True for _ in module.parameters()):
            yield module


def _without_scalars(coefficients: Coefficients) -> None:
    """Give scalar coefficients the shape (1,), and let them load from scalars."""
    scalars = {name: leaf for name, leaf in coefficients.leaves().items() if leaf.dim() == 0}
    for name, leaf in scalars.items():
        vector = nn.Parameter(leaf.detach().view(1), leaf.requires_grad)
        coefficients.register_parameter(name, vector)

    def load(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in scalars:
            own, found = module._parameters[name], state.get(prefix + name)
            if isinstance(own, DTensor) and isinstance(found, Tensor) and found.dim() == 0:
                value = distribute_tensor(found.view(1), own.device_mesh, own.placements)
                state[prefix + name] = value

    coefficients.register_load_state_dict_pre_hook(load)  # type: ignore[no-untyped-call]


def _refuse_second_gradients(network: nn.Module, inputs: object, output: Tensor) -> None:
    """Where a backward pass begins, see whether it is to be recorded."""
    if output.requires_grad:
        output.register_hook(_refuse_to_record)  # type: ignore[no-untyped-call]


def _refuse_to_record(gradient: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a sharded network has no gradient of its gradient (create_graph): FSDP frees the "
            "parameters that it would need"
        )
