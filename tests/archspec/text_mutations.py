"""Mutations of a text, whatever it says: slips of the hand, and what is ill meant."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

Mutation = Callable[[random.Random, str], str]


def choice(rng: random.Random, words: str) -> str:
    """One of several words; `␣` stands for a blank in one."""
    return rng.choice(words.split()).replace("␣", " ")


def replaced(rng: random.Random, text: str, pattern: str, new: Callable[[str], str]) -> str:
    """The text with one match of a pattern, drawn from all, replaced."""
    found = list(re.finditer(pattern, text, re.M))
    if not found:
        return text
    match = rng.choice(found)
    return text[: match.start()] + new(match[0]) + text[match.end() :]


def on_lines(rng: random.Random, text: str, change: Callable[[list[str], int], None]) -> str:
    """The text with its lines changed around one of them."""
    lines = text.splitlines(keepends=True) or [""]
    change(lines, rng.randrange(len(lines)))
    return "".join(lines)


KEY = r"(?<!\w)[A-Za-z_]\w*(?=:)"
VALUE = r"(?<=: )[^\n#]+"
NUMBER = r"(?<![\w.])[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
ODD_NUMBERS = """\
.nan -.nan .inf -.inf 0 0.0 -0.0 -1 1e308 1e309 1e-308 1e-320 10**16 10**16**16 2**-16 1e16 10000
10001 1000000000 0.1 0.5 0.9 1 2 3 7 11 1.5 true null ~ 0x10 0o17 1_000 +1 '3' "0.5" 1/3 1/0 layer
1/layer layer/depth depth progress 123456789012345678901234567890 ０ ９ 3.0 -0.5"""
ODD_VALUES = """\
{} [] [[]] null ~ true no yes '' "" 0 1 -1 3 0.5 1e999 .nan !!str !!python/object:os.system *a &a
| > x input zeros F(x) x1 layer_norm gelu attention store checkpoint reversible additive momentum
[x,y] {x:y} {x:␣input} [1,8,8] {learn:␣0.9} {learn:␣0.9,within:␣[0.5,1]} digits concat(x,y) 64
{draw:␣[0.5,-0.5],evaluate:␣0} {draw:␣[0],evaluate:␣0} [linear:␣channels] {tokens:␣[5,8]} %x `x`
[mlp:␣2,drop_path:␣0.1*layer/depth] {linear:␣8} {classify:␣10} ../x /etc/passwd {image:␣[1,8,8]}
2024-01-01 @x"""
ODD_KEYS = """\
<< depth streams functions constants update output coupling extends stages input head stem backward
layer x1 F gamma h lambda true null 1 ~ '' "" [a] {a} ? - name kind learn draw side maps share
transition"""
LOOK_ALIKES = str.maketrans(
    "xyacepoihkFG0123456789+-*=:,()[]", "хуасероіһкϜԌ０１２３４５６７８９＋−∗＝：，（）［］"
)
STRANGE = (
    "\u200b", "\ufeff", "\u202e", "\x00", "\x07", "\x85", "\u2028", "\xa0", "\r", "\t", "\x1b[31m",
    "\U0001f600", "é", "e\u0301", "'", '"', "`", "#", ": ", "- ", "? ", "&a ", "*a ", "!x ", "%",
    "@", "{", "}", "[", "]", ",", "|", ">", "\\", "...\n", "---\n", "$(x)", "{help}", "%s", "F@0",
)  # fmt: skip


def rename_a_key(rng: random.Random, text: str) -> str:
    return replaced(
        rng, text, KEY, lambda key: rng.choice([choice(rng, ODD_KEYS), f"{key}s", key[1:]])
    )


def delete_a_line(rng: random.Random, text: str) -> str:
    return on_lines(rng, text, lambda lines, i: lines.__delitem__(i))


def double_a_line(rng: random.Random, text: str) -> str:
    return on_lines(rng, text, lambda lines, i: lines.insert(rng.randrange(len(lines)), lines[i]))


def exchange_lines(rng: random.Random, text: str) -> str:
    def exchange(lines: list[str], i: int) -> None:
        j = rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]

    return on_lines(rng, text, exchange)


def indent_a_line(rng: random.Random, text: str) -> str:
    def indent(lines: list[str], i: int) -> None:
        shift = rng.choice([" ", "  ", "    ", "\t", " \t", "\xa0", "", "-"])
        lines[i] = shift + (lines[i].lstrip(" ") if rng.random() < 0.3 else lines[i])

    return on_lines(rng, text, indent)


def outdent_a_line(rng: random.Random, text: str) -> str:
    def outdent(lines: list[str], i: int) -> None:
        lines[i] = lines[i].removeprefix(" " * rng.randint(1, 4))

    return on_lines(rng, text, outdent)


def replace_a_number(rng: random.Random, text: str) -> str:
    return replaced(rng, text, NUMBER, lambda _: choice(rng, ODD_NUMBERS))


def replace_a_value(rng: random.Random, text: str) -> str:
    return replaced(rng, text, VALUE, lambda _: choice(rng, ODD_VALUES))


def quote_a_value(rng: random.Random, text: str) -> str:
    quotes = rng.choice(["'", '"', "`", "“"])
    return replaced(rng, text, VALUE, lambda value: f"{quotes}{value}{quotes}")


def exchange_values(rng: random.Random, text: str) -> str:
    values = re.findall(VALUE, text)
    return replaced(rng, text, VALUE, lambda value: rng.choice(values))


def write_look_alikes(rng: random.Random, text: str) -> str:
    return replaced(rng, text, r"[\w+*=:(-]+", lambda word: word.translate(LOOK_ALIKES))


def insert_something_strange(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(STRANGE) * rng.choice([1, 1, 1, 2, 50]) + text[at:]


def drop_a_bracket(rng: random.Random, text: str) -> str:
    return replaced(rng, text, r"[][(){}'\":,-]", lambda _: "")


def cut_the_text(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] if rng.random() < 0.5 else text[:at] + text[at + rng.randint(1, 30) :]


def add_anchors(rng: random.Random, text: str) -> str:
    text = replaced(rng, text, VALUE, lambda value: f"&a {value}")
    return replaced(rng, text, VALUE, lambda _: rng.choice(["*a", "*b", "{<<: *a}", "[*a, *a]"]))


def add_a_bomb(rng: random.Random, text: str) -> str:
    names = "abcdefghij"
    lines = [f"{names[0]}: &{names[0]} [{rng.choice(['x', '1', '{}', '[]'])}]"]
    for last, name in pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join(['*' + last] * rng.choice([1, 2, 9]))}]")
    if rng.random() < 0.3:
        lines = ["a: &a [*a]"] if rng.random() < 0.5 else ["<<: *a", *lines]
    bomb = "\n".join(lines) + "\n"
    return bomb + text if rng.random() < 0.5 else text + bomb


def nest_deeply(rng: random.Random, text: str) -> str:
    brackets = [("[", "]"), ("{a: ", "}"), ("(", ")"), ("- ", ""), ("-", ""), ("F(", ")")]
    opened, closed = rng.choice(brackets)
    count = rng.choice([5, 39, 41, 60, 200, 5000])
    return replaced(rng, text, VALUE, lambda value: opened * count + value + closed * count)


def write_at_length(rng: random.Random, text: str) -> str:
    count = rng.choice([50, 500, 5000, 30_000])
    piece = rng.choice(["y", "y ", "x + ", "[1], ", "# ", "9", "0.", "- ", "a: ", "\n", "é", "("])
    return replaced(rng, text, rng.choice([VALUE, KEY, NUMBER]), lambda old: old + piece * count)


def add_stages(rng: random.Random, text: str) -> str:
    stage = re.search(r"^  (\w+):\n(?:    .*\n)+", text, re.M)
    count = rng.choice([1, 3, 63, 64, 300])
    if not stage:
        return text
    name = rng.choice(["s{}", "s", "S{}"])
    copies = [stage[0].replace(stage[1], name.format(i), 1) for i in range(count)]
    return text[: stage.end()] + "".join(copies) + text[stage.end() :]


OF_TEXTS: tuple[Mutation, ...] = (
    rename_a_key, delete_a_line, double_a_line, exchange_lines, indent_a_line, outdent_a_line,
    replace_a_number, replace_a_value, quote_a_value, exchange_values, write_look_alikes,
    insert_something_strange, drop_a_bracket, cut_the_text, add_anchors, add_a_bomb, nest_deeply,
    write_at_length, add_stages,
)  # fmt: skip
