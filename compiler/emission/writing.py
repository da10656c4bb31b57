"""Small pieces of Python text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import indent


def block(head: str, *body: str) -> str:
    """A statement with what is indented under it."""
    inner = indent("\n".join(body), "    ")
    return f"{head}\n{inner}"


def method(signature: str, lines: Sequence[str], doc: str = "") -> str:
    """A method; `signature` has its name, its parameters and what it returns."""
    described = [docstring(doc)] if doc else []
    return block(f"def {signature}:", *described, *lines) + "\n"


def entries(lines: Sequence[str]) -> str:
    """Lines of a bracket that closes on a line of its own."""
    inner = indent("".join(f"{line},\n" for line in lines), "    ")
    return f"\n{inner}" if lines else ""


def literal(value: object) -> str:
    """A value as Python, in double quotes where that is easy."""
    text = repr(value)
    return text if '"' in text or "\\" in text else text.replace("'", '"')


def docstring(text: str) -> str:
    """A docstring that holds any text: it may come from a stranger's spec."""
    safe = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in safe)
    return f'"""{_closed(safe)}"""'


def _closed(text: str) -> str:
    return f"{text} " if text.endswith('"') else text


def camel(name: str) -> str:
    """A name as classes have it."""
    words = re.split(r"[^A-Za-z0-9]+", name)
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return joined if joined[:1].isalpha() else f"Net{joined}"


class ClassNames:
    """Gives every class a name that is not in `text` and not given yet."""

    def __init__(self, text: str) -> None:
        self.taken = set(re.findall(r"\w+", text)) | {"Function"}

    def new(self, wanted: str) -> str:
        """`wanted`, or that with a number."""
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}{number}", number + 1
        self.taken.add(name)
        return name
