"""Mutated spec files in the short form; `benchmarks/fuzz_specs.py` tries ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import check_error
from spec_mutations import FILE_MUTATIONS, OF_PROGRAMS, Mutant, mutant
from spec_originals import originals
from text_mutations import OF_TEXTS

from archspec.diagnostics import SpecError
from archspec.loading import load
from compiler.places import MAX_WORK, Mistakes
from compiler.resolve import resolve

COUNT = 320


@pytest.mark.parametrize("seeds", [range(i, i + 20) for i in range(0, COUNT, 20)], ids=str)
def test_mutated_files_are_refused_well_or_right(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long is bounded by counting, since a clock would depend on the machine."""
    work: list[int] = []
    affords = Mistakes.affords

    def counted(mistakes: Mistakes, more: int, *where: tuple[str | int, ...]) -> bool:
        afforded = affords(mistakes, more, *where)
        work.append(mistakes.work)
        return afforded

    monkeypatch.setattr(Mistakes, "affords", counted)
    for seed in seeds:
        path = mutant(seed).write(tmp_path / str(seed))
        try:
            plan = resolve(load(path))
        except SpecError as error:
            check_error(error)
        else:
            assert plan.stages
    assert all(done <= MAX_WORK for done in work)


@pytest.mark.parametrize("index", range(len(originals())))
def test_the_originals_are_right(index: int, tmp_path: Path) -> None:
    files = {name: text.encode() for name, text in originals()[index].items()}
    assert resolve(load(Mutant(files, ()).write(tmp_path))).stages


def test_a_seed_makes_the_same_files_again() -> None:
    assert mutant(7) == mutant(7)
    assert len({str(mutant(seed)) for seed in range(50)}) > 45


def test_every_mutation_occurs_and_changes_something() -> None:
    done = {name for seed in range(1000) for name in mutant(seed).mutations}
    assert done > {m.__name__ for m in (*OF_TEXTS, *OF_PROGRAMS, *FILE_MUTATIONS)}
    written = [{name: text.encode() for name, text in files.items()} for files in originals()]
    unchanged = [seed for seed in range(200) if mutant(seed).files in written]
    assert len(unchanged) < 50
