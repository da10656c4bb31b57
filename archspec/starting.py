"""A spec to start from: another one with all of it written out, and a comment above each part."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from archspec.dumping import scalar_text
from archspec.loading import ordered
from archspec.tree import Node

WIDTH = 100
SCHEMA = Path(__file__).parent / "schema" / "archspec-1.json"
COUPLING_SCHEMA = SCHEMA.with_name("coupling-1.json")
_MODELINE = re.compile(r"\A# yaml-language-server: \$schema=\S+")
_BLOCKS = frozenset({"stem", "functions", "maps", "update", "train"})
"""Keys whose entries stand on lines of their own."""
_LEFT_OUT = frozenset({"archspec", "name", "summary", "extends"})

SPEC_COMMENTS: Mapping[str, str] = {
    "family": "What `archspec list` calls networks of this kind.",
    "cite": "The papers it comes from. `archspec cite` prints their BibTeX.",
    "input": "One sample, such as {image: [channels, height, width]} or "
    "{tokens: [count, channels]}.",
    "side": "What functions read besides the streams, given by name with each batch.",
    "stem": "The layers before the first stage.",
    "stages": "Stages follow one another.",
    "head": "The layers behind the last stage.",
    "task": "What is learned.",
    "data": "The data set. `augment` changes training images at random.",
    "train": "The training. The learning rate rises for `warmup` epochs, and falls as a cosine.",
}
STAGE_COMMENTS: Mapping[str, str] = {
    "transition": "Layers that the stage's input passes through first.",
    "depth": "How many layers.",
    "streams": "The streams, and what each starts from: `input`, `zeros`, `chunk(input, 1, 2)`, or "
    "a function of these.",
    "functions": "Residual functions, each a list of layers. Every layer of the stage has weights "
    "of its own, unless `share: true`.",
    "maps": "Invertible maps of one stream, for updates such as `x = W(x)`.",
    "share": "Whether all layers have the same functions.",
    "constants": "Coefficients of the update: a number, or `0.5 + 0.4*layer/depth`, or "
    "{learn: 0.9, within: [0.5, 0.99]}.",
    "update": "One layer, line by line; change it, and the inverse is derived anew. `k := …` is a "
    "temporary, `a, b = b, a` changes places. What is to be reversed has the form "
    "`x = scale*x + rest`, where neither `scale` nor `rest` reads x.",
    "output": "What leaves the stage: a stream, or `concat(x1, x2)`, or `(x1 + x2)/2`.",
    "backward": "Where the backward pass has its activations from: `reversible` reconstructs them, "
    "`checkpoint` computes them again, `store` keeps them.",
    "store_every": "Streams are kept after every so many layers.",
    "smoothness": "Times the squared change of weights from layer to layer, added to the loss.",
    "arithmetic": "`float`, or `exact`: streams come back bit for bit.",
}


def written_out(tree: Node, name: str, parent: str) -> str:
    """A spec that stands alone: `tree`, which has nothing left to look up, under another name."""
    lines = _opening(name, parent)
    for key, node in ordered(tree).map.items():
        if key in _LEFT_OUT:
            continue
        lines += ["", *_comment(SPEC_COMMENTS.get(key, ""), "")]
        if key == "stages":
            lines.append("stages:")
            for stage, content in node.map.items():
                lines.append(f"  {stage}:")
                lines += _stage(content)
        else:
            lines += _entry(key, node, "")
    return "\n".join(lines) + "\n"


def extending(tree: Node, name: str, parent: str) -> str:
    """A spec that has all from another one but what it changes, at first the depth of a stage to
    what it is already."""
    stage, content = next(iter(tree.map["stages"].map.items()))
    says = (
        "What differs. Maps merge, lists replace, a null takes a key away. "
        f"`archspec show {name}.yaml --resolved` prints all that is inherited."
    )
    changed = ["stages:", f"  {stage}:", *_entry("depth", content.map["depth"], "    ")]
    lines = [*_opening(name, parent), f"extends: {parent}", "", *_comment(says, ""), *changed]
    return "\n".join(lines) + "\n"


def _opening(name: str, parent: str) -> list[str]:
    """An editor finds the schema by its whole address, wherever the file is on this machine."""
    return [
        _modeline(SCHEMA),
        "archspec: 1",
        f"name: {scalar_text(name)}",
        f"summary: {scalar_text(f'A variant of {parent}')}",
    ]


def readdressed(text: str, schema: Path) -> str:
    """A file's text for another folder: its first line, if it names a schema, names `schema`."""
    return _MODELINE.sub(lambda _: _modeline(schema), text)


def _modeline(schema: Path) -> str:
    return f"# yaml-language-server: $schema={schema.resolve().as_uri()}"


def _stage(content: Node) -> list[str]:
    lines: list[str] = []
    for key, node in content.map.items():
        lines += _comment(STAGE_COMMENTS.get(key, ""), "    ")
        lines += _entry(key, node, "    ")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(text, WIDTH - len(indent) - 2)]


def _entry(key: str, node: Node, indent: str) -> list[str]:
    """A key and its value, on one line where there is room."""
    head = f"{indent}{scalar_text(key)}:"
    if not isinstance(node.value, (dict, list)):
        return [f"{head} {scalar_text(node.value)}"]
    one_line = f"{head} {_flow(node)}"
    if not node.value or (key not in _BLOCKS and len(one_line) <= WIDTH):
        return [one_line]
    if isinstance(node.value, dict):
        children = [_entry(name, child, f"{indent}  ") for name, child in node.value.items()]
        return [head, *(line for lines in children for line in lines)]
    return [head, *(f"{indent}  - {_on_a_line(child)}" for child in node.value)]


def _on_a_line(node: Node) -> str:
    """An entry of a list that has a line of its own."""
    return _item(node) if isinstance(node.value, (dict, list)) else scalar_text(node.value)


def _item(node: Node) -> str:
    """An entry of a list on one line; a map of one key, without the braces."""
    if len(node.map) == 1:
        ((key, child),) = node.map.items()
        return f"{scalar_text(key)}: {_flow(child)}"
    return _flow(node)


def _flow(node: Node) -> str:
    """A value on one line."""
    if isinstance(node.value, dict):
        entries = (f"{scalar_text(key)}: {_flow(child)}" for key, child in node.value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(node.value, list):
        return f"[{', '.join(map(_item, node.value))}]"
    text = scalar_text(node.value)
    parts = isinstance(node.value, str) and any(c in ",[]{}" for c in node.value)
    return json.dumps(node.value, ensure_ascii=False) if parts and text == node.value else text
