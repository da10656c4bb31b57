"""The page of the zoo. `python tests/shared/zoo_page.py > docs/zoo.md` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from proofs import OURS, PROOFS
from published import PUBLISHED
from zoo_specs import SPECS

from archspec.cli.report import giga
from archspec.loading import load
from compiler.catalogue import Entry, entry

HEAD = """\
# The zoo

The published systems that archspec knows, and variants of our own, as pages of YAML:
`archspec show NAME` prints one with a picture of one layer,
`archspec build NAME` compiles and verifies it, `archspec train NAME` trains
it, `archspec cite NAME` gives its papers, and `archspec new my_variant --from NAME` starts a
variant. `archspec list` prints sizes and papers.

What is marked *ours* nobody has published: a published system on another data set or at another
size, or a variant. Where such a spec says what a network computes, that is our choice.

Sizes are computed from the specs, MACs for one input, without norms. A size in bold is one that was
published, or that published code gives, to the last parameter. `tests/zoo/test_zoo.py` builds every
spec at full size, checks those sizes, and verifies each at a reduced size: round trips, and
gradients against stored activations, in float32 and float64. `tests/zoo/test_settings_of_zoo.py`
holds published settings and recipes to `tests/shared/settings.yaml`, which says whose they are.
What further tests show, and of which specs, stands below each table.

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
            specs = ", ".join(f"`{spec}`" for spec in proof.specs)
            yield f"[{name}](../tests/{proof.test}): {proof.says}. Of {specs}.\n"


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
    published = PUBLISHED.get(each.name)
    size = f"**{size}**" if published and not published.derived else size
    summary = f"*ours:* {each.summary}" if each.name in OURS else each.summary
    link = f"[`{each.name}`](../specs/{each.name}.yaml)"
    return f"| {link} | {summary} | {size} | {giga(each.macs)} | {each.data or '–'} |\n"


if __name__ == "__main__":
    print(page(), end="")
