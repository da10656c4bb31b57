"""What exact arithmetic costs: the time and memory of a training step, against float arithmetic.

    python benchmarks/exact_arithmetic.py                    # small batch, this machine's CPU
    python benchmarks/exact_arithmetic.py --device cuda      # a real batch, in fp32 and bf16

Blocks are those of ViT-S: 196 tokens of width 384, 6 heads, MLP ratio 4. For each coupling the same
weights and batch take one step (forward and backward) in each variant in turn, many times over;
times are medians of the repeats, and each ratio is the median of ratios within a repeat. Before
anything is timed, the gradients of the exact reversible step must equal those of exact stored
activations, bit for bit. Memory is exact: live tensor bytes on a CPU, the allocator's peak on a
GPU. The result is printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch
from result_file import write_result
from torch import Tensor

import archspec
from archspec.loading import load
from compiler.exact import Form, Gauge, Grid, Monotone, Parity, Remainder, Unit
from compiler.forms import choices
from compiler.information import Information
from compiler.memory import step_memory
from compiler.resolve import resolve

Result = TypeVar("Result")

BRANCHES = {
    "F": ["layer_norm", {"attention": {"heads": 6}}],
    "G": ["layer_norm", {"mlp": {"ratio": 4}}],
}
WHOLE = {"F": ["layer_norm", {"attention": {"heads": 6}}, {"mlp": {"ratio": 4}}]}
LEARNED = {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"}
SCALED = {
    "streams": {"x1": "input", "x2": "input"},
    "constants": {"bound": 0.1},
    "update": ["x1 = x1*exp(bound*tanh(x2)) + F(x2)", "x2 = x2*exp(bound*tanh(x1)) + G(x1)"],
    "output": "concat(x1, x2)",
    "functions": BRANCHES,
}


def momentum_pair(gamma: object) -> dict[str, object]:
    """A momentum Rev-ViT."""
    return {"coupling": "momentum_pair", "constants": {"gamma": gamma}, "functions": BRANCHES}


CASES: Mapping[str, Mapping[str, object]] = {
    "additive": {"coupling": "additive", "functions": BRANCHES},
    "momentum, gamma 0.9": {"coupling": "momentum", "functions": WHOLE},
    "momentum_pair, gamma 0.5": momentum_pair(0.5),
    "momentum_pair, gamma 0.9": momentum_pair(0.9),
    "momentum_pair, gamma 0.95": momentum_pair(0.95),
    "momentum_pair, learned gamma": momentum_pair(LEARNED),
    "bdia": {"coupling": "bdia", "functions": WHOLE},
    "scale read from a stream": SCALED,
}
"""A layer has the same attention and MLP in each of them."""
VARIANTS = ("float store", "float reversible", "exact store", "exact reversible")
UNWATCHED = "exact reversible, range not checked"
WORD_BITS = 64
"""One word an element is allowed beside the bits that a form is said to keep."""


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    if arguments.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(arguments.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "archspec": archspec.__version__,
        },
        "tokens": 196,
        "width": 384,
        "depth": arguments.depth,
        "batch": arguments.batch,
        "repeats": arguments.repeats,
        "steps": [row for p in arguments.precisions for row in steps(arguments, p)],
        "kept": [kept(case, depth, arguments.device) for case in CASES for depth in (12, 48)],
        "forms": forms(arguments),
    }
    write_result(f"exact_arithmetic_{arguments.device}", json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--precisions", type=lambda text: text.split(","))
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.depth = arguments.depth or (4 if on_cpu else 12)
    arguments.batch = arguments.batch or (2 if on_cpu else 128)
    arguments.precisions = arguments.precisions or (["fp32"] if on_cpu else ["fp32", "bf16"])
    return arguments


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


# Networks -----------------------------------------------------------------------------------------


def spec(case: str, arithmetic: str, depth: int) -> dict[str, object]:
    """A network of ViT-S blocks."""
    return {
        "archspec": 1,
        "name": "exact_arithmetic",
        "summary": "ViT-S blocks",
        "input": {"image": [3, 224, 224]},
        "stem": [{"patch_embed": {"patch": 16, "width": 384}}, {"position": "learned"}],
        "stages": {"trunk": {**CASES[case], "depth": depth, "arithmetic": arithmetic}},
        "head": ["layer_norm", {"pool": "mean"}, {"linear": "classes"}],
        "task": {"classify": {"classes": 1000}},
    }


def network(case: str, arithmetic: str, depth: int, device: str) -> Any:
    """It, with the same weights in both arithmetics."""
    torch.manual_seed(0)
    return archspec.build(spec(case, arithmetic, depth)).to(device).train()


def images(batch: int, device: str) -> Tensor:
    """A batch."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 224, 224, generator=generator).to(device)


def take_step(model: Any, batch: Tensor, precision: str) -> None:
    """One forward and backward pass; gradients are added to those there."""
    torch.manual_seed(2)  # drawn coefficients
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(batch).float().square().mean()
    loss.backward()


def gradients(model: Any, batch: Tensor, precision: str) -> list[Tensor]:
    """Those of one step."""
    model.zero_grad()
    take_step(model, batch, precision)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@contextmanager
def unwatched() -> Iterator[None]:
    """Nothing looks at how large streams are."""
    with mock.patch.object(Information, "watch", return_value=None):
        yield


# Steps --------------------------------------------------------------------------------------------


def steps(arguments: argparse.Namespace, precision: str) -> list[dict[str, object]]:
    """Each coupling in each variant."""
    return [row for case in CASES for row in measured_case(case, arguments, precision)]


def measured_case(
    case: str, arguments: argparse.Namespace, precision: str
) -> list[dict[str, object]]:
    """All variants of one coupling, interleaved."""
    device, batch = arguments.device, images(arguments.batch, arguments.device)
    models = {a: network(case, a, arguments.depth, device) for a in ("float", "exact")}
    stored = gradients(models["exact"].set_backward("store"), batch, precision)
    rebuilt = gradients(models["exact"].set_backward("reversible"), batch, precision)
    equal = all(torch.equal(a, b) for a, b in zip(stored, rebuilt, strict=True))
    if not equal:
        raise SystemExit(f"{case}, {precision}: exact gradients differ from stored activations'")

    def prepared(variant: str) -> Any:
        arithmetic, backward = variant.split(",")[0].split()
        return models[arithmetic].set_backward(backward)

    peaks = {v: peak_bytes(prepared(v), batch, precision) for v in VARIANTS}
    times: dict[str, list[float]] = {v: [] for v in (*VARIANTS, UNWATCHED)}
    for repeat in range(arguments.repeats + 1):
        for variant, found in times.items():
            run = partial(take_step, prepared(variant), batch, precision)
            with unwatched() if variant == UNWATCHED else nullcontext():
                seconds, _ = timed(run, device)
            if repeat > 0:  # the first round warms up
                found.append(seconds)
    elements = arguments.batch * 196 * 384
    rows = [
        {
            "case": case,
            "precision": precision,
            "variant": variant,
            "gradients_equal_stored": equal if variant.startswith("exact rev") else None,
            "step_seconds": statistics.median(times[variant]),
            "ratio_to_float_reversible": ratio(times[variant], times["float reversible"]),
            "ratio_to_same_stored": ratio(times[variant], times[variant.split()[0] + " store"]),
            "peak_bytes": peaks.get(variant),
            "extra_peak_bytes_per_element": None
            if variant not in peaks
            else (peaks[variant] - peaks["float reversible"]) / elements,
        }
        for variant in times
    ]
    for row in rows:
        print(*row.values(), flush=True)
    return rows


def ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """The median of ratios within a repeat."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def timed(run: Callable[[], Result], device: str) -> tuple[float, Result]:
    """How many seconds it takes, and what it gives."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_bytes(model: Any, batch: Tensor, precision: str) -> int:
    """The most activation memory during one step, gradients allocated beforehand."""
    if batch.device.type == "cpu":
        return step_memory(model, lambda logits: logits.square().mean(), batch).peak
    for _ in range(2):  # the first step makes the gradients, and warms the allocator up
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        take_step(model, batch, precision)
    return torch.cuda.max_memory_allocated() - before


# What is kept -------------------------------------------------------------------------------------


def kept(case: str, depth: int, device: str) -> dict[str, object]:
    """The side information of one forward pass: bits of an element, of all streams together."""
    (plan,) = resolve(load(spec(case, "exact", depth))).stages
    chosen = [choice for layer in choices(plan) for choice in layer if choice is not None]
    model = network(case, "exact", depth, device)
    stage, information = model.stages[0], Information()
    with torch.no_grad():
        streams = stage.split(model.stem(images(1, device)))
        draws = stage.draw(streams[0])
        final = stage(*streams, draws=draws, information=information)
        back = stage.inverse(*final, draws=draws, information=information)
    start = [torch.round(stream * 2**14) / 2**14 for stream in streams]
    elements, bits = streams[0].numel(), sum(choice.bits for choice in chosen)
    bytes_kept = information.nbytes
    row: dict[str, object] = {
        "case": case,
        "depth": depth,
        "forms": sorted({type(choice.form).__name__ for choice in chosen}),
        "bound_bits": sum(choice.bound for choice in chosen),
        "predicted_bits": bits,
        "measured_bits": information.bits_per_element(),
        "stored_bits": 8 * bytes_kept / elements,
        "within_a_word": 8 * bytes_kept / elements <= bits + WORD_BITS,
        "inverse_equals_start": all(map(torch.equal, back, start)),
    }
    print(*row.values(), flush=True)
    return row


# Forms by themselves ------------------------------------------------------------------------------

GRID = Grid(14)


def forms(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Nanoseconds an element of one update of each form, forward and back, and of float's."""
    generator = torch.Generator().manual_seed(3)
    shape = (arguments.batch, 196, 384)

    def random() -> Tensor:
        return torch.randn(shape, generator=generator).to(arguments.device)

    value, change = GRID.rounded(random()), random()
    channels = torch.linspace(0.5, 0.99, 384, device=arguments.device)
    known: list[tuple[str, Form, Tensor | float]] = [
        ("Unit, 1", Unit(), 1.0),
        ("Parity, 1/2", Parity(1), 0.5),
        ("Gauge, 0.9", Gauge("v"), 0.9),
        ("Remainder, 9/10", Remainder(9, 10), 0.9),
        ("Monotone, 0.95", Monotone(2), 0.95),
        ("Monotone, by channel", Monotone(2), channels),
        ("Monotone, by element", Monotone(2), torch.sigmoid(random()) / 2 + 0.5),
    ]
    rows = []
    for name, form, scale in known:
        there, back = form_seconds(form, scale, value, change, arguments)
        plain = [
            timed(partial(as_float, value, scale, change), arguments.device)[0]
            for _ in range(4 * arguments.repeats)
        ]
        rows.append(
            {
                "form": name,
                "advance_ns": 1e9 * there / value.numel(),
                "retreat_ns": 1e9 * back / value.numel(),
                "float_ns": 1e9 * statistics.median(plain) / value.numel(),
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def as_float(value: Tensor, scale: Tensor | float, change: Tensor) -> Tensor:
    """The update in float arithmetic."""
    return scale * value + change


def form_seconds(
    form: Form, scale: Tensor | float, value: Tensor, change: Tensor, arguments: argparse.Namespace
) -> tuple[float, float]:
    """One update and its inverse, with four more on the stack beneath."""
    there, back = [], []
    for _ in range(4 * arguments.repeats):
        information, now = Information(), value
        for _ in range(4):
            now = form.advance(now, scale, change, GRID, information)
        settings = scale, change, GRID, information
        seconds, new = timed(partial(form.advance, now, *settings), arguments.device)
        there.append(seconds)
        seconds, old = timed(partial(form.retreat, new, *settings), arguments.device)
        back.append(seconds)
        if not torch.equal(old, now):
            raise SystemExit(f"{form} is not undone")
    return statistics.median(there), statistics.median(back)


if __name__ == "__main__":
    main()
