"""Random edits of specs, most of them illegal."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ODD_SCALARS: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 64, 10**9, 10**299, 0.0, -0.5, 1e-9, 1e300, 1.5, "", " ",
    "x", "x1", "F", "F(x1)", "input", "zeros", "concat(x1, x2)", "chunk(input, 1, 2)", "4*channels",
    "layer", "1/layer", "1/0", "10**16*10**16*10**16", "learned", "mean", "momentum", "additive",
    "rev_vit_digits", "../x", "a/b", "\x00", "\ud800", "\x85", "é", "名", "\U0001f600", "{x}", "[",
    "k := F(x1)", "x1 += x1", "x1, x2 = x2, x1", "x1 = 1e999*x1", "x1 = x1*exp(1000)", "(" * 300,
    "-" * 900 + "x", "!!str x", "*a", "&a", "<<", "y" * 2000,
]  # fmt: skip
CONTAINERS: list[Any] = [
    [], {}, [[]], {"": ""}, {"kind": "conv"}, {"learn": 0.5}, {"learn": 0.5, "within": [0, 1]},
    {"draw": [0, 1], "evaluate": 0}, {"mlp": {"ratio": 4}}, {"linear": "channels"}, ["add"],
    {"conv": {}}, {"attention": 0}, {"x1": "input"}, ["x1 += F(x2)"], {"0": "x"},
    {"layer_norm": None},
]  # fmt: skip
KEYS = [
    "kind", "depth", "streams", "functions", "constants", "update", "output", "coupling", "extends",
    "x1", "x2", "F", "G", "gamma", "h", "layer", "input", "lambda", "", "0", "7", "²", "é", "a b",
    "image", "tokens", "features", "conv", "flatten", "k" * 300, "<<", "{help}", "backward", "null",
]  # fmt: skip

values = st.sampled_from(ODD_SCALARS) | st.sampled_from(CONTAINERS)


TEXTS = [
    "x1 += F(x2)", "x2 += G(x1)", "x1 += F(x1)", "x1 = x2", "x1, x2 = x2, x1",
    "x1 = x1*exp(tanh(F(x2)))", "x1 = gamma*x1 + G(x2)", "k := F(x2)", "x1 += k",
    "x2 = x2/gamma + k", "x1 -= h*F(x2)*layer", "x1 = x1/layer + F(x2)", "x2 += G(F(x1))",
    "x2 += F(x1, x2)", "x += F(x)", "x = 0", "v = -v", "x1 += x2", "x1 += 1", "x1 = x1*x2",
    "x2 = sigmoid(F(x1))*x2", "gamma = 1", "x1", "x2", "x", "v", "input", "zeros",
    "input + F(input)", "chunk(input, 1, 2)", "chunk(input, 2, 2)", "chunk(input, 1, 3)",
    "concat(x1, x2)", "concat(x1, v1)", "x1 + x2", "gamma*x1", "0.5*layer", "1 - gamma", "h**2",
    "1/layer", "channels", "2*channels", "channels/2", "classes", "0.1*layer/depth", "8*layer",
    "64", "depth",
]  # fmt: skip
LAYERS: list[Any] = [
    "layer_norm", "batch_norm", "gelu", "flatten", "class_token", "add", "concat", "conv",
    "transpose_pair", {"attention": 2}, {"attention": 3}, {"linear": "channels"}, {"linear": 8},
    {"mlp": 2}, {"mlp": {"ratio": 0.3}}, {"drop_path": "0.1*layer/depth"}, {"dropout": 0.1},
    {"pool": "mean"}, {"pool": "first"}, {"conv": {"stride": 2}}, {"conv": {"kernel": 2}},
    {"group_norm": 2}, {"scale": 0.1}, {"transpose_pair": {"hidden": "2*channels"}},
    {"linear": "8*layer + 8"}, {"patch_embed": {"patch": 2, "width": 8}},
]  # fmt: skip
CONSTANTS: list[Any] = [
    0, 0.5, 1, -1, 0.9, "0.5 + 0.4*layer/depth", "1/depth", "gamma", {"learn": 0.9},
    {"learn": 0.9, "within": [0.5, 1.0]}, {"learn": 0.9, "within": [0.5, 1.0], "per": "channel"},
    {"learn": 0.9, "per": "channel"}, {"draw": [0.5, -0.5], "evaluate": 0},
    {"draw": [0.5, 0], "evaluate": 1},
]  # fmt: skip


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values that could stand in the place of `value`."""
    if isinstance(value, str):
        return st.sampled_from([*TEXTS, *LAYERS, *CONSTANTS])
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, (int, float)):
        numbers = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 0.5, 0.25])
        return numbers | st.sampled_from(CONSTANTS)
    if isinstance(value, list):
        return st.lists(st.sampled_from(LAYERS), max_size=4) | st.lists(
            st.sampled_from(TEXTS), max_size=3
        )
    return st.sampled_from([*LAYERS, *CONSTANTS])


def fresh(tree: Any) -> Any:
    """A copy in which nothing is shared."""
    if isinstance(tree, dict):
        return {key: fresh(value) for key, value in tree.items()}
    return [fresh(value) for value in tree] if isinstance(tree, list) else tree


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of every value inside a tree of maps and lists."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        entries = list(tree.items())
    elif isinstance(tree, list):
        entries = list(enumerate(tree))
    inner = [place for key, value in entries for place in places(value, (*path, key))]
    return [*([path] if path else []), *inner]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The value on a path."""
    for step in path:
        tree = tree[step]
    return tree


@st.composite
def edited(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tree after one to three edits: values removed, renamed, retyped or exchanged."""
    tree = fresh(tree)
    for _ in range(draw(st.integers(1, 3))):
        known = places(tree)
        if not known:
            break
        path = draw(st.sampled_from(known))
        parent, last = at(tree, path[:-1]), path[-1]
        edits = ["remove", "rename", "replace", "exchange", "add", "retune", "retune", "retune"]
        edit = draw(st.sampled_from(edits))
        if edit == "remove":
            del parent[last]
        elif edit == "retune":
            parent[last] = fresh(draw(like(parent[last])))
        elif edit == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS))] = parent.pop(last)
        elif edit == "exchange":
            other = draw(st.sampled_from(known))
            mine, others = fresh(parent[last]), fresh(at(tree, other))
            parent[last] = others
            if other[: len(path)] != path and path[: len(other)] != other:
                at(tree, other[:-1])[other[-1]] = mine
        elif edit == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS))] = fresh(draw(values))
        else:
            parent[last] = fresh(draw(values))
    return tree


INSERTS = [
    "\t", "\n", " ", ":", "- ", "#", "{", "}", "[", "]", ",", "'", '"', "&a ", "*a", "!t ", "|",
    ">", "%", "@", "?", "\x00", "\x07", "\x85", "\u2028", "\ufeff", "\u200b", "\xa0", "\U0001f600",
    "0", "-", "1e999", ".nan", "<<: ", "---\n", "...\n", "x" * 2000, "\r",
]  # fmt: skip


@st.composite
def scribbled(draw: st.DrawFn, text: str) -> str:
    """A text after one to three insertions or deletions anywhere."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        if draw(st.booleans()):
            text = text[:at] + draw(st.sampled_from(INSERTS)) + text[at:]
        else:
            text = text[:at] + text[at + draw(st.integers(1, 30)) :]
    return text
