"""The page of the zoo. `python tests/shared/zoo_page.py > docs/zoo.md` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from proofs import PROOFS
from published import PUBLISHED
from zoo_specs import SPECS

from archspec.cli.report import giga
from archspec.loading import load
from compiler.catalogue import Entry, entry

HEAD = """\
# The zoo

Every published system that archspec knows, as a page of YAML: `archspec show NAME` prints it with
a picture of one layer, `archspec build NAME` compiles and verifies it, `archspec train NAME` trains
it, `archspec cite NAME` gives its papers, and `archspec new my_variant --from NAME` starts a
variant. `archspec list` prints sizes and papers.

Sizes are computed from the specs, MACs for one input, without norms. A size in bold is the one that
was published, to the last parameter. `tests/zoo/test_zoo.py` builds every spec at full size, checks
what is published, and verifies each at a reduced size: round trips, and gradients against stored
activations, in float32 and float64. What further tests show stands below each table.

Written by `python tests/shared/zoo_page.py > docs/zoo.md`.
"""
MEMORY = Path(__file__).parents[2] / "benchmarks" / "results" / "zoo_memory_cpu.json"
COLUMNS = "| spec | | parameters | MACs | data set |\n| --- | --- | ---: | ---: | --- |\n"


def page() -> str:
    """The text of docs/zoo.md."""
    entries = [entry(load(name)) for name in SPECS]
    known = [proof.family for proof in PROOFS]
    if strange := sorted({e.family or e.name for e in entries} - set(known)):
        raise ValueError(f"tests/shared/proofs.py says nothing of {', '.join(strange)}")
    families = [text for family in dict.fromkeys(known) for text in _family(family, entries)]
    return "\n".join([HEAD, *families, _memory()])


def _family(family: str, entries: list[Entry]) -> Iterator[str]:
    yield f"## {family}\n"
    yield COLUMNS + "".join(_row(each) for each in entries if each.family == family)
    for proof in PROOFS:
        if proof.family == family:
            name = proof.test.rpartition("/")[2]
            yield f"[{name}](../tests/{proof.test}): {proof.says}.\n"


def _memory() -> str:
    """What a training step of the transformers takes, as it was measured."""
    result = json.loads(MEMORY.read_text(encoding="utf-8"))
    rows = [
        f"| `{row['spec']}` | {row['kept_mb']:.3f} | {row['peak_mb']:.3f} |"
        for row in result["megabytes_per_image"]
    ]
    said = (
        "Megabytes of activations for each image, kept between forward and backward, and at the "
        f"peak; parameters and gradients aside. `{result['command']}` measured them, on the CPU in "
        f"float32 with torch {result['versions']['torch']}, in batches of {result['batch']}: "
        f"[its result](../benchmarks/results/{MEMORY.name})."
    )
    head = "| spec | kept | peak |\n| --- | ---: | ---: |"
    return "\n".join(["## Memory of a training step\n", said, "", head, *rows, ""])


def _row(each: Entry) -> str:
    size = f"{each.parameters:,}"
    size = f"**{size}**" if each.name in PUBLISHED else size
    link = f"[`{each.name}`](../specs/{each.name}.yaml)"
    return f"| {link} | {each.summary} | {size} | {giga(each.macs)} | {each.data or '–'} |\n"


if __name__ == "__main__":
    print(page(), end="")
