"""Networks over several processes: which of their modules FSDP gathers and frees together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.distributed import get_world_size, is_initialized
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from compiler.network import Network
from compiler.stage import Functions, Stage


def shard(
    network: Network,
    mesh: DeviceMesh | None = None,
    *,
    reshard_after_forward: bool | int | None = None,
    mp_policy: MixedPrecisionPolicy | None = None,
    offload_policy: OffloadPolicy | None = None,
) -> Network:
    units = _units(network)
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
    for stage in network.stages:
        for layer in stage.layers:
            c = layer.coefficients
            for n, p in c._parameters.items():
                if p.dim() == 0:
                    c._parameters[n] = nn.Parameter(
                        p.detach().view(1), requires_grad=p.requires_grad
                    )
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    return network


def _units(network):
    out = []
    for stage in network.stages:
        out += [stage.transition, *stage.starts.values()]
        for f in stage.modules():
            if isinstance(f, Functions):
                out += f.by_name().values()
    out += [network.stem, network.head]
    return [m for m in {id(m): m for m in out}.values() if any(True for _ in m.parameters())]
