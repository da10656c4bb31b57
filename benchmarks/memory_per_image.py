"""What each further image of a batch takes in training, beside its arithmetic floor.

    python benchmarks/memory_per_image.py                 # predicted for a GPU, without one
    python benchmarks/memory_per_image.py --device cuda   # measured on it

The peak of a whole training step (AdamW, images and all) is taken at two batches; what it grows by
with each image is told, and how many times that is of the same network with stored activations.
The floor is what a reversible step cannot do without: the streams, their cotangents, and what the
largest call of a residual function saves. The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from result_file import write_rows
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from archspec.loading import load
from archspec.training import Train
from compiler.base_stage import BaseStage
from compiler.memory import storage_of
from compiler.network import Network
from compiler.plan import NetworkPlan
from compiler.resolve import resolve
from runners.devices import find_device
from runners.profile.cuda_rules import AutocastAsOnCuda
from runners.profile.measurement import memory_use
from runners.profile.prediction import Forecast
from runners.profile.schedules import REVERSIBLE, Schedule, schedules_of
from runners.profile.step import DTYPES

SPECS = (
    "vit_s",
    "vit_b",
    "vit_l",
    "rev_vit_s",
    "rev_vit_b",
    "rev_vit_l",
    "momrev_vit_s",
    "momrev_vit_b",
    "momrev_vit_l",
    "rev_mvit_b",
    "momrev_mvit_b",
)
BATCHES = (128, 256)


def main() -> None:
    """Predict or measure, print, and write the result."""
    arguments = parse_arguments()
    rows = [
        row
        for name in arguments.specs
        for precision in arguments.precisions
        for row in rows_of(name, precision, arguments.device)
    ]
    is_there = arguments.device == "cuda"
    device = find_device("cuda") if is_there else "a GPU, predicted"
    name = "memory_per_image_" + ("cuda" if is_there else "predicted")
    write_rows(name, rows, device)


def rows_of(name: str, precision: str, device: str) -> Iterator[dict[str, object]]:
    """One network by each strategy."""
    plan = resolve(load(name))
    forecast = Forecast(plan, "cuda")
    for way in schedules_of(forecast.network, ("store", "checkpoint", "reversible")):
        slope = slope_of(forecast, plan, way, precision, device)
        row: dict[str, object] = {
            "spec": name,
            "precision": precision,
            "strategy": way.name,
            "bytes_per_image": slope,
        }
        if way == REVERSIBLE:
            row["floor"] = floor(forecast, precision)
        print(
            f"{name:16}{precision:6}{way.name:12}{slope / 1e6:8.2f} MB an image"
            + (f", floor {row['floor'] / 1e6:.2f}" if isinstance(row.get("floor"), float) else "")
        )
        yield row


def slope_of(
    forecast: Forecast, plan: NetworkPlan, way: Schedule, precision: str, device: str
) -> float:
    """Bytes by which the peak grows with each image."""
    few, many = (
        Train(epochs=1, batch=batch, learning_rate=1e-4, precision=precision) for batch in BATCHES
    )
    if device == "predicted":
        peaks = [forecast.peak(recipe, way) for recipe in (few, many)]
    else:
        there = find_device("cuda")
        network = Network(plan).to(there)
        way.apply(network)
        peaks = [memory_use(network, recipe, there).peak for recipe in (few, many)]
    return (peaks[1] - peaks[0]) / (BATCHES[1] - BATCHES[0])


def floor(forecast: Forecast, precision: str) -> float:
    """Bytes of an image: the streams, their cotangents, and what the largest call saves."""
    few, many = (floor_at(forecast, precision, batch) for batch in BATCHES)
    return max(m - f for f, m in zip(few, many, strict=True)) / (BATCHES[1] - BATCHES[0])


def floor_at(forecast: Forecast, precision: str, batch: int) -> list[int]:
    """Bytes of each call in its stage, at a batch."""
    network, found = forecast.network.train(), []
    dtype = DTYPES.get(precision)
    autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
    with forecast.fake, AutocastAsOnCuda(), torch.no_grad(), autocast:
        value = network.stem(torch.randn(batch, *network.plan.input.sizes))
        for stage in network.stages:
            streams = stage.split(value)
            kept = 2 * sum(stream.nbytes for stream in streams)
            found += [kept + saved for saved in saved_by_calls(stage, streams)]
            value = stage.merge(*stage(*streams))
    return found


def saved_by_calls(stage: BaseStage, streams: tuple[Tensor, ...]) -> list[int]:
    """Bytes that each call of the first layer saves, its weights and its argument left out."""
    layer, found = stage.program()[0], []
    for step in layer.steps:
        for call in getattr(step, "calls", ()):
            function = layer.functions[call.function]
            argument = streams[0].detach()
            known = {storage_of(t) for t in (argument, *function.parameters())}
            saved: dict[int, int] = {}

            def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
                saved[storage_of(tensor)] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
                function(argument.requires_grad_())
            found.append(sum(size for key, size in saved.items() if key not in known))
    return found


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("predicted", "cuda"), default="predicted")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--specs", nargs="+", default=list(SPECS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
