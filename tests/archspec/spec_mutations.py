"""Mutations of spec files: one to several at once, all drawn from a seed.

They work on the text, as a slip of the hand or an ill-meant file would, and know nothing of what
it means; most of the files that come out are wrong. `mutant(seed)` is the same on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spec_originals import MAIN, originals
from text_mutations import NUMBER, OF_TEXTS, Mutation, choice, replaced


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


# Mutations of programs ----------------------------------------------------------------------------

UPDATE = r"^ *- .*=.*$"
WORD = r"(?<!\w)[A-Za-z_]\w*"
UPDATES = (
    "x += F(x)", "x += F(y)", "x1 += F(x2)", "x1 = gamma*x1 + F(x2)", "k := F(x)", "x = x/0",
    "x1, x2 = x2, x1", "x, y = y, x", "x1 = x1*exp(F(x2))", "x1 = x1*exp(tanh(F(x2)))", "x = 0*x",
    "x2 = -x2 + 2*x1", "v = v", "x = x*x", "x += 1/(layer - 1)", "x ^= 2", "x **= 2", "x //= 2",
    "x += y[0]", "x += 'y'", "x = (lambda: x)()", "x += __import__('os')", "x += F(*y)", "x == y",
    "x: int = 3", "del x", "x += 1j", "x += 1e400*y", "x += 2**16**2*y", "x += 10**16*10**16*F(y)",
    "x1 += k; x2 += k", "x += F(y,)", "x = x if x else y", "x = x*progress + F(y)", "x +=",
    "x = W(x)", "x = W(y)", "x += W(y)",
)  # fmt: skip


def retune_a_number(rng: random.Random, text: str) -> str:
    near = "1 2 3 4 6 8 0.5 0.25 0.99 -1 0 1.25 layer depth"
    return replaced(rng, text, NUMBER, lambda _: choice(rng, near))


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


OF_PROGRAMS: tuple[Mutation, ...] = (
    retune_a_number, exchange_an_operator, exchange_a_name, rearrange_updates, replace_an_update,
    add_an_update, make_gamma_odd, make_deep, lengthen_an_update, repeat_updates, draw_many,
    chain_constants,
)  # fmt: skip


# Mutations of bytes, and of several files ---------------------------------------------------------


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
