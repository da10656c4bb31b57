"""Thousands of mutated spec files, each refused with its places or rightly built.

    python benchmarks/fuzz_specs.py --count 10000 --seed 0

Every file is loaded and resolved, as `archspec check` does, in a process that has no torch and may
take no more than 1 GiB; what is accepted and small is built, run and verified in another, as
`archspec build` does. Seconds are of processor time, since the machine may be doing something else
too. A file that breaks the rules (a traceback, a mistake without a place, more than a second or
1 GiB, a build that fails) is kept for inspection. The counts are printed and written to
benchmarks/results/fuzz_specs.json. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from result_file import write_result

import archspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "archspec"))

MOST_SECONDS = 1.0
MOST_BYTES = 2**30
PATIENCE = 120
"""Seconds after which a file is given up, on a machine however slow."""
CLI_EVERY = 200
"""So many files lie between two that also go through the command line."""
MOST_PARAMETERS, MOST_DEPTH, MOST_ELEMENTS = 200_000, 12, 64
"""What is small enough to be built."""

Reply = dict[str, Any]


def main() -> None:
    """Fuzz, print, and write the result."""
    arguments = parse_arguments()
    tally = fuzz(arguments)
    result = {
        "command": "python " + " ".join(sys.argv),
        "count": arguments.count,
        "seed": arguments.seed,
        **tally.as_dict(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "pydantic", "pyyaml")},
            "archspec": archspec.__version__,
        },
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    print("\n".join(f"{key}: {value}" for key, value in result.items()))
    write_result("fuzz_specs", text)
    sys.exit(1 if tally.broken else 0)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "fuzz_failures")
    return parser.parse_args()


@dataclass
class Tally:
    """What became of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    command_line: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.0})
    most_bytes: int = 0
    broken: list[dict[str, Any]] = field(default_factory=list)
    not_verified: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "outcomes": dict(sorted(self.outcomes.items())),
            "files_with_error": dict(sorted(self.codes.items())),
            "mutations": dict(sorted(self.mutations.items())),
            "command_line": dict(sorted(self.command_line.items())),
            "slowest": self.slowest,
            "most_bytes": self.most_bytes,
            "broken": self.broken,
            "not_verified": self.not_verified,
        }


def fuzz(arguments: argparse.Namespace) -> Tally:
    """All files, one by one."""
    from spec_mutations import mutant

    tally = Tally()
    with Worker(checker) as checking, Worker(builder) as building:
        for index in range(arguments.count):
            seed = arguments.seed + index
            made = mutant(seed)
            tally.mutations.update(set(made.mutations))
            with tempfile.TemporaryDirectory() as folder:
                path = made.write(Path(folder))
                about = {"seed": seed, "mutations": list(made.mutations)}
                problem = try_file(path, checking, building, tally, about)
                if index % CLI_EVERY == 0:
                    problem = problem or through_command_line(path, tally)
                if problem:
                    tally.broken.append({**about, "problem": problem[-300:]})
                    kept = arguments.keep / str(seed)
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    (kept / "problem.txt").write_text(problem, encoding="utf-8")
            if index % 500 == 499:
                print(
                    f"{index + 1}: {dict(tally.outcomes)}, {len(tally.broken)} broken", flush=True
                )
    return tally


def try_file(
    path: Path, checking: Worker, building: Worker, tally: Tally, about: dict[str, Any]
) -> str:
    """Check a file, and build what is right and small. Returns what went wrong, if anything."""
    checked = checking.ask(path)
    tally.codes.update(checked.get("codes", ()))
    tally.most_bytes = max(tally.most_bytes, checked.get("bytes", 0))
    if checked.get("seconds", 0) > tally.slowest["seconds"]:
        tally.slowest = {"seconds": round(checked["seconds"], 3), **about}
    outcome = checked["outcome"]
    if outcome == "accepted" and checked["small"]:
        built = building.ask(path)
        outcome = built["outcome"]
        checked["problem"] = built.get("problem", "")
        if outcome == "built, not verified":
            tally.not_verified.append({**about, "measured": built["measured"]})
    tally.outcomes[outcome] += 1
    if checked.get("seconds", 0) > MOST_SECONDS:
        return f"took {checked['seconds']:.2f} s"
    return str(checked.get("problem", ""))


def through_command_line(path: Path, tally: Tally) -> str:
    """`archspec check` in a process of its own."""
    command = [sys.executable, "-m", "archspec", "check", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    tally.command_line[f"exit code {found.returncode}"] += 1
    if found.returncode not in (0, 2) or "Traceback" in found.stderr:
        return f"the command line ends with {found.returncode}: {found.stderr}"
    return ""


# Workers ------------------------------------------------------------------------------------------


class Worker:
    """A process that answers about one file at a time, and another in its place if it dies."""

    def __init__(self, answer: Callable[[Connection], None]) -> None:
        self.answer = answer

    def __enter__(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.answer, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def ask(self, path: Path) -> Reply:
        """What the process says of a file."""
        self.pipe.send(path)
        try:
            if self.pipe.poll(PATIENCE):
                reply: Reply = self.pipe.recv()
                return reply
            problem = f"no answer in {PATIENCE} s"
        except EOFError:
            problem = "the process died"
        self.__exit__()
        self.__enter__()
        return {"outcome": "broken", "problem": problem}


def checker(pipe: Connection) -> None:
    """Answers what `archspec check` makes of files."""
    from refusals import check_error

    from archspec.diagnostics import SpecError
    from archspec.loading import load
    from archspec.shapes import elements
    from compiler.resolve import resolve

    resolve(load("rev_vit_digits"))  # imports what is imported late
    assert "torch" not in sys.modules
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def answer(path: Path) -> Reply:
        start = time.process_time()
        codes: list[str] = []
        small = False
        try:
            plan = resolve(load(path))
            depth = sum(stage.depth for stage in plan.stages)
            small = depth <= MOST_DEPTH and elements(plan.input) <= MOST_ELEMENTS
        except SpecError as error:
            seconds = time.process_time() - start
            codes = sorted({diagnostic.code for diagnostic in error.diagnostics})
            check_error(error)
        else:
            seconds = time.process_time() - start
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        outcome = "refused" if codes else "accepted"
        return {
            "outcome": outcome,
            "codes": codes,
            "small": small,
            "seconds": seconds,
            "bytes": used,
        }

    serve(pipe, answer)


def builder(pipe: Connection) -> None:
    """Answers what `archspec build` makes of files."""
    import torch

    from archspec.loading import load
    from compiler.network import build
    from compiler.resolve import resolve
    from compiler.summary import summarise
    from compiler.verify import FLOAT64_TOLERANCE, verify

    torch.set_num_threads(1)

    def answer(path: Path) -> Reply:
        plan = resolve(load(path))
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build(plan).parameters())
        if parameters > MOST_PARAMETERS:
            return {"outcome": "accepted"}
        torch.manual_seed(0)
        network = build(plan)
        summary = summarise(network, verify(network))
        json.dumps(summary.as_dict(), allow_nan=False)
        side = {s.name: torch.randn(2, *s.shape.sizes) for s in plan.side}
        outputs = network.eval()(torch.randn(2, *plan.input.sizes), **side)
        assert outputs.shape == (2, *plan.output.sizes)
        found = summary.verification
        assert found is not None
        if found["passed"]:
            return {"outcome": "built and verified"}
        # `archspec build` says so, and ends with exit code 1. It is right to where the inverse
        # amplifies rounding, of which it warns, or float32 alone is not enough.
        double = [found[f"{name}_error_float64"] for name in ("roundtrip", "gradient")]
        warned = any(stage.warning for stage in summary.stages)
        if warned or all(error is None or error <= FLOAT64_TOLERANCE for error in double):
            plain = summary.as_dict()["verification"]
            measured = {name: plain[name] for name in found if name != "stages"}
            return {"outcome": "built, not verified", "measured": {"warned": warned, **measured}}
        return {"outcome": "broken", "problem": f"not verified, without a reason: {found}"}

    serve(pipe, answer)


def serve(pipe: Connection, answer: Callable[[Path], Reply]) -> None:
    """Answer until nobody asks any more."""
    with contextlib.suppress(EOFError):
        while True:
            path = pipe.recv()
            try:
                pipe.send(answer(path))
            except Exception:
                pipe.send({"outcome": "broken", "problem": traceback.format_exc()})


if __name__ == "__main__":
    main()
