"""What the training loop costs beside the model: ours against a bare loop, side by side.

    python benchmarks/loop_overhead.py                  # momrev_vit_cifar10 at its batch of 128
    python benchmarks/loop_overhead.py --device cuda --steps 100

Both loops train the same network (equal weights, optimizer and batches) on CIFAR-sized images in
memory. The bare one is what a person would write: forward, backward, clipping, step. Ours is
`runners.loop.train_epoch` with all that a run does in a step: the learning rate, progress, the look
at the loss, the clock, the bar; and the batches read, shuffled, cropped and flipped, which the bare
loop is given ready. Each repeat runs one after the other, in turn first; the result is the median
of ratios within repeats. The looks at inverses and gradients that a run takes every so many steps
(`train.watch`) are timed by themselves, and added as what they come to a step. On a CPU seconds are
those of the process, so that others do not count; on a GPU they are the clock's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from result_file import write_result
from torch import nn

import archspec
from archspec.loading import Loaded, load
from archspec.training import Train, Watch
from runners.augment import batch_augmentation
from runners.data import Split, read, shuffled
from runners.datasets import CIFAR10_STATISTICS, normalising
from runners.devices import open_fabric
from runners.loop import Step, train_epoch
from runners.parts import Parts, set_up
from runners.progress import Glance, memory, watching
from runners.records import NoRecords
from runners.samples import HeldImages
from runners.signals import Asked
from runners.standing import Standing
from runners.tasks import Batch, Task, open_task
from runners.train import build_model, recipe_and_data
from runners.watch import DriftWatch


def main() -> None:
    """Measure, print, and write the result."""
    arguments = parse_arguments()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load(arguments.spec, (f"train.batch={arguments.batch}", "train.clip=1.0"))
    recipe, entry = recipe_and_data(loaded)
    task, split = open_task(loaded), images(loaded, entry.augment, arguments.steps * recipe.batch)
    split = split.on(torch.device(device))
    ours, bare = (parts_of(loaded, recipe, device) for _ in range(2))
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(arguments.repeats + 1):
        ready = batches(split, recipe, ours)
        runs: list[tuple[str, Callable[[], float]]] = [
            ("ours", lambda: our_loop(ours, task, split, recipe)),
            ("bare", lambda ready=ready: bare_loop(bare, recipe, ready)),
        ]
        found = {name: run() for name, run in (runs if repeat % 2 else reversed(runs))}
        if repeat:  # the first one warms up
            for name, took in found.items():
                seconds[name].append(took / arguments.steps)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    watched = watch_seconds(ours, task, split, recipe) / statistics.median(seconds["bare"])
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "archspec": archspec.__version__},
        "spec": arguments.spec,
        "batch": recipe.batch,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "bare_step_ms": 1000 * statistics.median(seconds["bare"]),
        "our_step_ms": 1000 * statistics.median(seconds["ours"]),
        "ratio": statistics.median(ratios) + watched,
        "of_which_watch": watched,
        "ratios": [round(ratio, 4) for ratio in sorted(ratios)],
    }
    print(f"bare {result['bare_step_ms']:.1f} ms, ours {result['our_step_ms']:.1f} ms a step")
    print(f"ratio {result['ratio']:.4f}, with {watched:.4f} for the watch")
    print(f"ratios without it: {min(ratios):.4f} to {max(ratios):.4f}")
    print(write_result(f"loop_overhead_{device}", json.dumps(result, indent=2)))


def images(loaded: Loaded, augment: object, count: int) -> Split:
    """As many random images in memory as an epoch of so many steps has."""
    source = torch.Generator().manual_seed(0)
    sizes, classes = loaded.spec.input.shape.sizes, loaded.spec.task.sizes["classes"]
    pixels = torch.randint(0, 256, (count, *sizes), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, classes, (count,), generator=source)
    normalise = normalising(CIFAR10_STATISTICS, batch_augmentation(augment))
    return Split(
        HeldImages(pixels, labels),
        torch.arange(count),
        lambda inputs, targets: (normalise(inputs), targets),
    )


def parts_of(loaded: Loaded, recipe: Train, device: str) -> Parts:
    torch.manual_seed(0)
    return set_up(open_fabric(loaded, recipe, device), build_model(loaded), recipe)


def batches(split: Split, recipe: Train, parts: Parts) -> list[Batch]:
    """As our loop reads them, on the device."""
    return list(read(split, shuffled(split, recipe.batch, 0, 0), parts.fabric.device))


def our_loop(parts: Parts, task: Task, split: Split, recipe: Train) -> float:
    """The seconds of an epoch."""
    device = parts.fabric.device

    def unreadable(files: object) -> None: ...

    with watching(False, 1, 1, 0, task.metric) as watcher:

        def after(step: Step) -> bool:
            score = step.score
            rate = score.samples_per_second
            watcher.step(Glance(1, score.loss, score.measured, rate, memory(device)))
            return True

        began = now(device)
        train_epoch(parts, task, split, recipe, Standing(), Asked(), after, unreadable)
        return now(device) - began


def watch_seconds(parts: Parts, task: Task, split: Split, recipe: Train) -> float:
    """Of looks at inverses and gradients, what they come to a step: the median of five."""
    found, device = [], parts.fabric.device
    for kind in ("roundtrip", "gradient"):
        often = Watch.model_validate({"roundtrip": 2, "gradient": 2} | {kind: 1})
        watch = DriftWatch(often, parts, task, split, NoRecords())
        took = []
        for _ in range(5):
            began = now(device)
            watch.after(1)
            took.append(now(device) - began)
        found.append(statistics.median(took) / getattr(recipe.watch, kind))
    return sum(found)


def bare_loop(parts: Parts, recipe: Train, ready: list[Batch]) -> float:
    """The seconds of the same steps."""
    model, optimizer, device = parts.model, parts.bare_optimizer, parts.fabric.device
    model.train()
    began = now(device)
    for inputs, labels in ready:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip or torch.inf)
        optimizer.step()
    return now(device) - began


def now(device: torch.device) -> float:
    """Seconds, when all that was asked for is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def parse_arguments() -> argparse.Namespace:
    """The options; without any they are what the documentation quotes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", default="momrev_vit_cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
