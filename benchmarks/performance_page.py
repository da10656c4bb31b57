"""Writes docs/performance.md and its plots from benchmarks/results/*.json.

    python benchmarks/performance_page.py

Each section has a table for every file that there is of its kind, and says with which command and
on what the file was made. Nothing on the page is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from runners.comparison.plots import MARKERS, svg

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
MEBI = 2**20
Found = Mapping[str, Any]
"""A result."""


def main() -> None:
    """Write the page and the plots."""
    for name, text in files(RESULTS).items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"written: docs/{name}")


def files(results: Path) -> dict[str, str]:
    """The page and its plots, by their names."""
    lines, drawn = [INTRODUCTION], {}
    for section in SECTIONS:
        found = [(path.stem, load(path)) for path in sorted(results.glob(f"{section.files}.json"))]
        if not found:
            continue
        lines += ["", f"## {section.title}", "", section.text]
        for stem, result in found:
            lines += ["", made(stem, result), "", *section.table(result)]
            if section.draw is not None:
                name = f"performance_{stem}.svg"
                lines += ["", f"![{section.title}]({name})"]
                drawn[name] = plot(stem, section.draw, result)
    return {"performance.md": "\n".join(lines) + "\n", **drawn}


def load(path: Path) -> Found:
    """A file of results."""
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found


def plot(title: str, draw: Callable[[Axes, Found], None], result: Found) -> str:
    """One plot, as SVG."""
    return svg(title, lambda axes: draw(axes, result)) + "\n"


def made(stem: str, result: Found) -> str:
    """Where the numbers are from."""
    settings = {
        name: result[name]
        for name in ("spec", "size", "batch", "precision", "width", "tokens", "depth", "threads")
        if name in result
    }
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    device = result.get("device", "cpu")
    where = f"{result['machine']}" if device == "cpu" else device
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    link = f"[{stem}.json](../benchmarks/results/{stem}.json)"
    told = f"; {told}" if told else ""
    return f"`{result['command']}` on {where} ({versions}){told}: {link}."


def table(header: Sequence[str], rows: Iterator[Sequence[str]], texts: int = 1) -> list[str]:
    """A table, whose first columns are texts."""
    ruler = ["---"] * texts + ["---:"] * (len(header) - texts)
    return ["| " + " | ".join(row) + " |" for row in (header, ruler, *rows)]


# Sections -----------------------------------------------------------------------------------------


def peers(result: Found) -> list[str]:
    """Contenders of each coupling."""

    def rows() -> Iterator[Sequence[str]]:
        for row in result["rows"]:
            if "failure" in row:
                yield (row["coupling"], row["contender"], row["failure"], "", "", "", "")
                continue
            yield (
                row["coupling"],
                row["contender"],
                f"{row['peak_bytes'] / 1e6:,.1f}",
                f"{row['bytes_per_sample'] / 1e6:,.3f}",
                f"{row['largest_batch']:,}",
                f"{row['step_ratio']:.3f}",
                f"{row['gradient_error']:.0e}",
            )

    header = ("coupling", "", "peak, MB", "a sample, MB", "largest batch", "step", "gradient error")
    return [*table(header, rows(), texts=2), "", standing(result)]


def standing(result: Found) -> str:
    """Who takes less than our reversible stages, and who is faster."""
    told = []
    for coupling in dict.fromkeys(row["coupling"] for row in result["rows"]):
        rows = {
            row["contender"]: row
            for row in result["rows"]
            if row["coupling"] == coupling and "step_ratio" in row
        }
        ours = rows.get("archspec")
        if ours is None:
            continue
        peers = {n: r for n, r in rows.items() if not n.startswith(("archspec", "stored"))}
        less = [n for n, r in peers.items() if r["peak_bytes"] < ours["peak_bytes"]]
        faster = [
            f"{n} ({1 - r['step_ratio'] / ours['step_ratio']:.0%}, at "
            f"{r['peak_bytes'] / ours['peak_bytes']:.1f} times the memory)"
            for n, r in peers.items()
            if r["step_ratio"] < ours["step_ratio"]
        ]
        told.append(
            f"Of {coupling}, with less memory than archspec: {', '.join(less) or 'none'}; faster: "
            f"{', '.join(faster) or 'none'}."
        )
    return " ".join(told)


def frontier(result: Found) -> list[str]:
    """Ways between stored and reversed."""
    rows = (
        (row["way"], f"{row['peak_bytes'] / MEBI:,.1f}", f"{row['step_ratio']:.3f}")
        for row in result["rows"]
    )
    return table(("activations", "peak, MiB", "step"), rows)


def draw_frontier(axes: Axes, result: Found) -> None:
    """Time against memory."""
    rows = result["rows"]
    planned = [row for row in rows if "checkpoint" not in row["way"]]
    ends = [planned[0], planned[-1]]
    for points, style, label in (
        (planned, "-o", "the planner, from stored to reversible"),
        (ends, "--", "the line between its ends"),
    ):
        places = [row["peak_bytes"] / MEBI for row in points]
        axes.plot(places, [row["step_ratio"] for row in points], style, label=label)
    for index, row in enumerate(row for row in rows if "checkpoint" in row["way"]):
        place = row["peak_bytes"] / MEBI
        axes.plot([place], [row["step_ratio"]], MARKERS[index + 1], label=row["way"])
    axes.set_xlabel("peak of a training step, MiB")
    axes.set_ylabel("step, to that of stored activations")
    axes.legend(fontsize="small")


def per_image(result: Found) -> list[str]:
    """Bytes of an image, by network and precision."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in result["rows"]:
        of = cells.setdefault((row["spec"], row["precision"]), {})
        of[row["strategy"]] = row["bytes_per_image"]
        if "floor" in row:
            of["floor"] = row["floor"]

    def mega(value: float | None) -> str:
        return "–" if value is None else f"{value / 1e6:,.1f}"

    def rows() -> Iterator[Sequence[str]]:
        for (spec, precision), of in cells.items():
            reversible, stored = of.get("reversible"), of["stored"]
            saved = "–" if reversible is None else f"{stored / reversible:.1f}"
            values = (of.get(name) for name in ("stored", "checkpoint", "reversible", "floor"))
            yield (spec, precision, *map(mega, values), saved)

    header = ("spec", "precision", "stored", "checkpoint", "reversible", "floor", "stored ÷ rev.")
    return table(header, rows(), texts=2)


def predicted(result: Found) -> list[str]:
    """Predicted peaks beside measured ones."""
    rows = (
        (
            row["spec"],
            row["strategy"],
            row["precision"],
            f"{row['batch']}",
            f"{row['measured_peak'] / MEBI:,.1f}",
            f"{row['predicted_peak'] / MEBI:,.1f}",
            f"{row['ratio']:.3f}",
        )
        for row in result["rows"]
    )
    header = ("spec", "activations", "precision", "batch", "measured, MiB", "predicted", "ratio")
    return table(header, rows, texts=3)


def depth(result: Found) -> list[str]:
    """Memory and time of each depth."""
    rows = (
        (
            row["strategy"],
            f"{row['depth']:,}",
            f"{row['peak_bytes'] / MEBI:,.2f}",
            f"{1000 * row['seconds'] / row['depth']:.2f}",
        )
        for row in result["rows"]
    )
    return table(("activations", "layers", "peak, MiB", "a layer, ms"), rows)


def draw_depth(axes: Axes, result: Found) -> None:
    """Memory against depth."""
    for strategy, style in (("store", "-s"), ("reversible", "-o")):
        rows = [row for row in result["rows"] if row["strategy"] == strategy]
        peaks = [row["peak_bytes"] / MEBI for row in rows]
        axes.plot([row["depth"] for row in rows], peaks, style, label=strategy)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("layers")
    axes.set_ylabel("peak of activations, MiB")
    axes.legend(fontsize="small")


def overhead(result: Found) -> list[str]:
    """Microseconds of the engine."""
    rows = (
        (
            row["spec"],
            f"{row['forward_us']:.0f}",
            f"{row['replay_us']:.0f}",
            f"{row['call_us'] / 1000:,.1f}",
            f"{row['forward_share']:.2%}",
            f"{row['replay_share']:.2%}",
        )
        for row in result["rows"]
    )
    header = ("spec", "forward, µs", "replay, µs", "a call, ms", "forward, share", "replay, share")
    return table(header, rows)


def compiled(result: Found) -> list[str]:
    """What torch.compile gives."""
    rows = (
        (row["way"], f"{1000 * row['step_seconds']:,.1f}", f"{row['step_ratio']:.3f}")
        for row in result["rows"]
    )
    return table(("", "step, ms", "to stored"), rows)


@dataclass(frozen=True)
class Section:
    """A kind of result, as the page tells it."""

    title: str
    files: str
    """Which results are of this kind."""
    text: str
    table: Callable[[Found], list[str]]
    draw: Callable[[Axes, Found], None] | None = None


INTRODUCTION = (
    "# Performance\n\n"
    "What archspec takes in memory and time, beside its peers, its floor, and itself. This page is"
    " written by `python benchmarks/performance_page.py` from the files in `benchmarks/results/`, "
    "each of which is made by the command above its table; `python benchmarks/run_all.py` makes "
    "all of them, and with `--device cuda` those of a GPU. Times are ratios taken side by side in "
    "one run, medians of interleaved repeats."
)

SECTIONS = (
    Section(
        "Side by side with peers",
        "side_by_side_*",
        "The same modules, weights and inputs by every contender. Outputs and gradients are held "
        "against plain autograd's first, and one that computes something else has a row that says "
        "so. The largest batch is what 8 GiB have room for by these numbers, beside weights, "
        "gradients and AdamW's state. Memory is what a forward and a backward pass add to "
        "parameters, gradients and the input; *a sample* is what it grows by with each one; *step*"
        " is the time, to that of stored activations: the median of ratios within a repeat, of "
        "which a few hundredths are noise here. The size small is 64 tokens of width 192. The "
        "gradient error is relative, and that of "
        "reversible contenders is the rounding of what they reconstruct.",
        peers,
    ),
    Section(
        "Between stored and reversible",
        "frontier_*",
        "Whole training steps as the planner of `backward: {budget: …}` goes: the results of more "
        "and more calls are kept, which lets their replays end before the last layer, and then "
        "their activations. Beside it checkpoints before every layer, and at the square root of "
        "the depth. Replaying every call once is 4/3 of the functions' arithmetic; stem, head "
        "and optimizer, which nobody replays, are in both steps and lower the ratio.",
        frontier,
        draw_frontier,
    ),
    Section(
        "Memory of an image",
        "memory_per_image_*",
        "What the peak of a whole training step grows by with each image of 224×224, in MB. The "
        "published Rev-ViT-L takes 22.6 MB an image in float32, 15.5 times less than its ViT-L "
        "(Mangalam et al. 2022). The floor is the streams, their cotangents, and what one call "
        "saves. What is above it: the image, in float32 and as autocast copies it for the patch "
        "embedding, and what the gradient of an MLP takes on its way, that of its hidden layer "
        "above all; of Rev-MViT, the transitions between its stages too, which are stored.",
        per_image,
    ),
    Section(
        "Predicted and measured",
        "predicted_memory_*",
        "Peaks of whole training steps as `archspec profile` predicts them, on tensors that hold "
        "nothing, and as they are measured.",
        predicted,
    ),
    Section(
        "Depth",
        "depth_*",
        "One forward and backward pass. Parameters, their gradients and the input are left out of "
        "memory.",
        depth,
        draw_depth,
    ),
    Section(
        "What the engine takes for itself",
        "engine_overhead*",
        "Its own Python, for each call of a residual function: in the forward pass, and in the "
        "replay beyond the function. The shares are of that call's forward pass in the network as "
        "it is, at a batch of 128.",
        overhead,
    ),
    Section(
        "torch.compile",
        "compiled_*",
        "Ratios are medians of those within a repeat, and times medians by themselves. "
        "Residual functions compiled one by one, and the whole model, which a stage that computes "
        "activations again does not allow: it sets hooks on saved tensors.",
        compiled,
    ),
)

if __name__ == "__main__":
    main()
