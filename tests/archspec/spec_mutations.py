"""Mutations of spec files: one to several at once, all drawn from a seed.

They work on the text, as a slip of the hand or an ill-meant file would, and know nothing of what
it means; most of the files that come out are wrong. `mutant(seed)` is the same on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from archspec.dumping import dump
from archspec.loading import PROGRAM, load, ordered, zoo

MAIN = "spec.yaml"
"""The file of a mutant that is loaded."""


@dataclass(frozen=True)
class Mutant:
    """A spec that is probably wrong: its files by name, and what was done to them."""

    files: Mapping[str, bytes]
    mutations: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Write the files into a folder; the spec among them."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / MAIN


Mutation = Callable[[random.Random, str], str]


def choice(rng: random.Random, words: str) -> str:
    """One of several words; `␣` stands for a blank in one."""
    return rng.choice(words.split()).replace("␣", " ")


# What is mutated ----------------------------------------------------------------------------------

SMALL = (
    "stem=[patch_embed: {patch: 4, width: 16}, position: learned]",
    "stages.trunk.depth=3",
    "stages.trunk.functions.F.1.attention.heads=2",
)
"""Settings that make one of these small enough to be built and verified in no time."""
VITS = ("vit_digits", "rev_vit_digits", "momrev_vit_digits")
STAGE = """\
archspec: 1
name: spec
summary: A coupling with its functions
input: {tokens: [5, 8]}
stages:
  trunk:
    depth: 3
    coupling: mine
    functions:
FUNCTIONS
head: [pool: mean, linear: classes]
task: {classify: {classes: 3}}
"""
FUNCTION = "      {}: [layer_norm, linear: channels, tanh]\n"
MAP = "      {}: actnorm\n"
EVERYTHING = """\
archspec: 1
name: spec
summary: All that the shipped specs do without
input: {tokens: [5, 8]}
side: {time: {features: [3]}, pull: {tokens: [5, 8]}}
stages:
  trunk:
    depth: 4
    streams: {x: input, y: "F0(input)", z: zeros}
    functions:
      F0: [layer_norm, tanh]
      F: [layer_norm, attention: {heads: 2}, drop_path: 0.2*layer/(depth - 1)]
      G: [layer_norm, modulate, mlp: {ratio: 2, dropout: 0.1}]
      H: [add, scale, linear: {out: channels, bias: false}]
    maps: {W: invertible_linear, A: actnorm}
    constants:
      h: 1/depth
      gamma: {learn: 0.9, within: [0.5, 0.99], per: channel}
      sign: {draw: [0.5, -0.5], per: sample, evaluate: 0.25}
      ramp: 0.5 + 0.4*progress
    update:
      - x = W(x)
      - k := tanh(y)*pull
      - x = gamma*x + h*F(y) + k
      - z = sign*z + (1 - sign)*x + H(x, y)
      - y += ramp*G(x, time)/2
      - y = A(y)
      - x, y, z = y, z, x
    output: (x + y)/2 - z
    share: false
head: [pool: mean, linear: classes]
task: {classify: {classes: 3}}
"""
"""A spec of everything that the shipped ones do without."""


@cache
def originals() -> tuple[dict[str, str], ...]:
    """Every shipped spec as it is written and with all that it inherits, and every coupling beside
    a spec that uses it and written out in one."""
    found = []
    for path in sorted(zoo().glob("*.yaml")):
        found.append({MAIN: path.read_text(encoding="utf-8")})
        small = SMALL if path.stem in VITS else ()
        found.append({MAIN: dump(ordered(load(path, small).tree))})
    for path in sorted((zoo() / "couplings").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        stage = STAGE.replace(
            "FUNCTIONS\n", "".join(map(FUNCTION.format, named(text, "functions")))
        )
        if maps := named(text, "maps"):
            stage = stage.replace("head:", "    maps:\n" + "".join(map(MAP.format, maps)) + "head:")
        if path.stem in ("residual", "residual_pair", "euler", "rk2", "rk4"):
            stage = stage.replace("    depth: 3\n", "    depth: 3\n    backward: store\n")
        found.append({MAIN: stage, "couplings/mine.yaml": text})
        program = re.findall(rf"^(?:{'|'.join(PROGRAM)}):.*\n(?:[ -].*\n)*", text, re.M)
        written = "".join(re.sub("^", "    ", part, flags=re.M).rstrip(" ") for part in program)
        found.append({MAIN: stage.replace("    coupling: mine\n", written)})
    return (*found, {MAIN: EVERYTHING})


def named(text: str, key: str) -> list[str]:
    """The functions or maps that a coupling asks for."""
    return re.findall(r"\w+", "".join(re.findall(rf"^{key}: \[(.*)\]", text, re.M)))


# Places in a text ---------------------------------------------------------------------------------


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
UPDATE = r"^ *- .*=.*$"
WORD = r"(?<!\w)[A-Za-z_]\w*"

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
UPDATES = (
    "x += F(x)", "x += F(y)", "x1 += F(x2)", "x1 = gamma*x1 + F(x2)", "k := F(x)", "x = x/0",
    "x1, x2 = x2, x1", "x, y = y, x", "x1 = x1*exp(F(x2))", "x1 = x1*exp(tanh(F(x2)))", "x = 0*x",
    "x2 = -x2 + 2*x1", "v = v", "x = x*x", "x += 1/(layer - 1)", "x ^= 2", "x **= 2", "x //= 2",
    "x += y[0]", "x += 'y'", "x = (lambda: x)()", "x += __import__('os')", "x += F(*y)", "x == y",
    "x: int = 3", "del x", "x += 1j", "x += 1e400*y", "x += 2**16**2*y", "x += 10**16*10**16*F(y)",
    "x1 += k; x2 += k", "x += F(y,)", "x = x if x else y", "x = x*progress + F(y)", "x +=",
    "x = W(x)", "x = W(y)", "x += W(y)",
)  # fmt: skip
LOOK_ALIKES = str.maketrans(
    "xyacepoihkFG0123456789+-*=:,()[]", "хуасероіһкϜԌ０１２３４５６７８９＋−∗＝：，（）［］"
)
STRANGE = (
    "\u200b", "\ufeff", "\u202e", "\x00", "\x07", "\x85", "\u2028", "\xa0", "\r", "\t", "\x1b[31m",
    "\U0001f600", "é", "e\u0301", "'", '"', "`", "#", ": ", "- ", "? ", "&a ", "*a ", "!x ", "%",
    "@", "{", "}", "[", "]", ",", "|", ">", "\\", "...\n", "---\n", "$(x)", "{help}", "%s", "F@0",
)  # fmt: skip


# Mutations of a text ------------------------------------------------------------------------------


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


def retune_a_number(rng: random.Random, text: str) -> str:
    near = "1 2 3 4 6 8 0.5 0.25 0.99 -1 0 1.25 layer depth"
    return replaced(rng, text, NUMBER, lambda _: choice(rng, near))


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


def exchange_an_operator(rng: random.Random, text: str) -> str:
    operator = r"(?<=[\w)] )[-+*/]?=|(?<=[\w)])(?: [-+] |[*/]{1,2})(?=[\w(])"
    others = [" + ", " - ", "*", "/", "**", "+=", "-=", "*=", "/=", "=", ":=", "^", "//", "%", "@"]
    return replaced(rng, text, operator, lambda _: rng.choice(others))


def exchange_a_name(rng: random.Random, text: str) -> str:
    def exchange(line: str) -> str:
        names = re.findall(WORD, text)
        return replaced(rng, line, WORD, lambda _: rng.choice(names))

    return replaced(rng, text, UPDATE, exchange)


def rearrange_updates(rng: random.Random, text: str) -> str:
    updates = re.findall(UPDATE, text, re.M)
    rng.shuffle(updates)
    return re.sub(UPDATE, lambda _: updates.pop(), text, flags=re.M)


def replace_an_update(rng: random.Random, text: str) -> str:
    new = rng.choice(UPDATES)
    quoted = f'"{new}"' if rng.random() < 0.5 else new
    return replaced(rng, text, r"(?<=- )\w.*=.*$", lambda _: quoted)


def add_an_update(rng: random.Random, text: str) -> str:
    new = rng.choice(UPDATES)
    return replaced(rng, text, UPDATE, lambda old: f"{old}\n{old[: old.index('-')]}- {new}")


def make_gamma_odd(rng: random.Random, text: str) -> str:
    odd = (
        "0 0.0 -0.0 1e-9 1 .nan 1e300 0*layer layer 1-layer gamma {learn:␣0} "
        "{learn:␣0.9,␣within:␣[0,␣1]} {draw:␣[0,␣1],␣evaluate:␣1} {draw:␣[0.5,␣-0.5],␣evaluate:␣0}"
    )
    values = r"(?<=\bgamma: )[^,}\n]+|(?<=\bh: )[^,}\n]+|(?<=\bbound: )[^,}\n]+"
    return replaced(rng, text, values, lambda _: choice(rng, odd))


def make_deep(rng: random.Random, text: str) -> str:
    depths = "10000 10001 1000000000 9999 1 0 12 100 1e4 10000.0"
    return replaced(rng, text, r"(?<=depth: )\S+", lambda _: choice(rng, depths))


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


def lengthen_an_update(rng: random.Random, text: str) -> str:
    count = rng.choice([10, 50, 70, 400])
    name = choice(rng, "x x1 x2 y F(x2) F(y) layer gamma 1/3 x/h 10**16")
    operator = rng.choice([" + ", "*", " - ", "/"])
    return replaced(rng, text, UPDATE, lambda old: old + operator + operator.join([name] * count))


def repeat_updates(rng: random.Random, text: str) -> str:
    updates = re.findall(UPDATE, text, re.M)
    count = rng.choice([2, 5, 30, 64, 500])
    return replaced(rng, text, UPDATE, lambda old: "\n".join([old, *updates * count]))


def with_constants(rng: random.Random, text: str, constants: Mapping[str, str], read: str) -> str:
    """The text with constants written where its program is, and read in one of its updates."""
    block = "".join(f"\n  {name}: {value}" for name, value in constants.items())
    updates = r"^( *)update:(?=\n)"
    found = re.search(updates, text, re.M)
    if not found:
        return text
    indented = ("\nconstants:" + block).replace("\n", "\n" + found[1]).lstrip("\n")
    text = re.sub(rf"^{found[1]}constants:.*\n(?:{found[1]} .*\n)*", "", text, flags=re.M)
    text = re.sub(updates, lambda match: f"{indented}\n{match[0]}", text, count=1, flags=re.M)
    text = re.sub(r"\b(gamma|bound|h)\b(?!:)", "0.9", text)
    if rng.random() < 0.3:
        name = re.compile(r"^( *- (\w+) )\+= ", re.M)
        text = name.sub(lambda m: f"{m[1]}= ({read} + 9)*{m[2]} + ", text, count=rng.choice([1, 9]))
    return re.sub(r"\b([A-Z]\()", rf"({read})*\1", text, count=rng.choice([1, 1, 9]))


def draw_many(rng: random.Random, text: str) -> str:
    count = rng.choice([1, 2, 4, 8, 9, 12, 64])
    draws = rng.choice(["[0.5, -0.5]", "[1, 0]", "[1, 2]", "[0.5, 0.6, 0.7]", "[1]"])
    value = f"{{draw: {draws}, evaluate: {rng.choice(['0', '0.5', '1'])}}}"
    constants = {f"d{i}": value for i in range(count)}
    together = rng.choice([" + ", "*"]).join([*constants, *rng.choice([[], ["layer"], ["1"]])])
    if rng.random() < 0.5:
        text = make_deep(rng, text)
    return with_constants(rng, text, constants, rng.choice([together, f"1/({together})", "d0"]))


def chain_constants(rng: random.Random, text: str) -> str:
    count = rng.choice([2, 5, 20, 64, 65])
    ranged = "{learn:␣0.9,within:␣[0.5,1]} {draw:␣[0.5,1],evaluate:␣1} {learn:␣0.9}"
    first = choice(rng, f"layer/depth 0.5 1/(layer+1) layer progress {ranged}")
    steps = (
        "{}*0.5+1 {0}+{0} {0}*{0} {}/(layer+1) {}**2 {}+1/3 1/{} 1-{} {}+c0 {}**16 {}-layer 0*{}"
    )
    step = choice(rng, steps)
    constants = {"c0": first, **{f"c{i}": step.format(f"c{i - 1}") for i in range(1, count)}}
    if rng.random() < 0.1:
        constants["c0"] = f"c{count - 1}"
    if rng.random() < 0.5:
        text = make_deep(rng, text)
    return with_constants(rng, text, constants, f"c{count - 1}")


def add_stages(rng: random.Random, text: str) -> str:
    stage = re.search(r"^  (\w+):\n(?:    .*\n)+", text, re.M)
    count = rng.choice([1, 3, 63, 64, 300])
    if not stage:
        return text
    name = rng.choice(["s{}", "s", "S{}"])
    copies = [stage[0].replace(stage[1], name.format(i), 1) for i in range(count)]
    return text[: stage.end()] + "".join(copies) + text[stage.end() :]


def change_the_bytes(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    lone = [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80"]
    new = rng.choice([b"\xff", b"\0", *lone])
    whole = [
        lambda: content[:at] + new + content[at:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.decode(errors="replace").encode("utf-16"),
        lambda: content * rng.choice([2, 200]),
        lambda: b"",
        lambda: content.replace(b"  ", b"\t"),
    ]
    return rng.choice(whole)()


OF_TEXTS: tuple[Mutation, ...] = (
    rename_a_key, delete_a_line, double_a_line, exchange_lines, indent_a_line, outdent_a_line,
    replace_a_number, replace_a_value, quote_a_value, exchange_values, write_look_alikes,
    insert_something_strange, drop_a_bracket, cut_the_text, add_anchors, add_a_bomb, nest_deeply,
    write_at_length, add_stages,
)  # fmt: skip
OF_PROGRAMS: tuple[Mutation, ...] = (
    retune_a_number, exchange_an_operator, exchange_a_name, rearrange_updates, replace_an_update,
    add_an_update, make_gamma_odd, make_deep, lengthen_an_update, repeat_updates, draw_many,
    chain_constants,
)  # fmt: skip


# Mutations of several files -----------------------------------------------------------------------


def extend_round(rng: random.Random, files: dict[str, str]) -> dict[str, str]:
    """Files that extend one another, round in a circle or in a long line."""
    count = rng.choice([1, 2, 3, 15, 16, 17, 40])
    names = ["spec", *(f"p{i}" for i in range(1, count))]
    last = rng.choice(["spec", "p1", "missing", "rev_vit_digits", "mine", "vit_b"])
    chain = dict(zip(names, [*names[1:], last], strict=True))
    body = re.sub(r"^extends:.*\n", "", files[MAIN], flags=re.M)
    head = "archspec: 1\nname: {}\nextends: {}\n"
    new = {f"{name}.yaml": head.format(name, parent) for name, parent in chain.items()}
    new[MAIN] = f"extends: {chain['spec']}\n{body}"
    if rng.random() < 0.3:
        more = "summary: x\nstages: {trunk: {depth: 2}}\n"
        new = {name: text + more for name, text in new.items()}
    return {**files, **new}


def extend_oddly(rng: random.Random, files: dict[str, str]) -> dict[str, str]:
    parents = (
        "rev_vit_digits revnet_digits vit_digts momentum spec spec.yaml mine couplings/mine "
        f"../spec '' null [a] é {{a:␣b}} {'x' * 300}"
    )
    text = re.sub(r"^extends:.*\n", "", files[MAIN], flags=re.M)
    return {**files, MAIN: f"extends: {choice(rng, parents)}\n{text}"}


def name_couplings_oddly(rng: random.Random, files: dict[str, str]) -> dict[str, str]:
    names = "additive momentum bdia spec mine additiv ../mine {} 5 null"
    text = replaced(rng, files[MAIN], r"(?<=coupling: )\w+", lambda _: choice(rng, names))
    odd = ["", "5", "[]", "a: b", files[MAIN], "archspec: 1\ncoupling: mine\n", "x" * 70_000]
    return {**files, MAIN: text, "couplings/mine.yaml": rng.choice([*odd, *files.values()])}


FILE_MUTATIONS = (extend_round, extend_oddly, name_couplings_oddly)


def mutant(seed: int) -> Mutant:
    """The spec of a seed: one of the originals after one to five mutations."""
    rng = random.Random(f"mutant {seed}")
    files = dict(rng.choice(originals()))
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
        if rng.random() < 0.08:
            change = rng.choice(FILE_MUTATIONS)
            files = change(rng, files)
            done.append(change.__name__)
        else:
            name = rng.choice(list(files))
            mutation = rng.choice(rng.choice([OF_TEXTS, OF_PROGRAMS]))
            files[name] = mutation(rng, files[name])
            done.append(mutation.__name__)
    contents = {name: text.encode() for name, text in files.items()}
    if rng.random() < 0.06:
        contents[MAIN] = change_the_bytes(rng, contents[MAIN])
        done.append(change_the_bytes.__name__)
    return Mutant(contents, tuple(done))
