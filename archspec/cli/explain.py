"""archspec explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from archspec.explanations import Example, Explanation

WIDTH = 80


@click.command("explain")
@click.argument("codes", nargs=-1, metavar="[CODE]...")
def command(codes: tuple[str, ...]) -> None:
    """Say at length what an error means, with what is wrong and what is right.

    CODE is what stands in the brackets of an error, such as E301. Without one, all are listed.
    """
    from archspec.explanations import explanations

    known = explanations()
    for code in codes:
        if code.upper() not in known:
            raise click.UsageError(f"there is no error `{code}`; {_nearest(code, list(known))}")
    if codes:
        click.echo("\n\n\n".join(_page(known[code.upper()]) for code in codes))
    else:
        for each in known.values():
            click.echo(f"{click.style(each.code, bold=True)}  {each.title}")


def _nearest(code: str, known: list[str]) -> str:
    """What to try in place of `code`; `diagnostics.nearest` would list all, without titles."""
    near = [each for each in known if _differ_in_one(code.upper(), each)]
    offered = f"did you mean {near[0]}?  " if near else ""
    return f"{offered}`archspec explain` lists them all"


def _differ_in_one(a: str, b: str) -> bool:
    """Whether one character is another, is missing, or is too many."""
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    short, long = sorted((a, b), key=len)
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _page(explanation: Explanation) -> str:
    heading = click.style(f"{explanation.code}  {explanation.title}", bold=True)
    parts = [_wrapped(p) if isinstance(p, str) else _shown(p) for p in explanation.parts]
    return "\n\n".join([heading, *parts])


def _wrapped(prose: str) -> str:
    """Each line wrapped, those of a list under their first word. What is in backticks stays
    together, and what is indented stays as it is."""
    import re
    from textwrap import fill

    def line(text: str) -> str:
        if text.startswith("    "):
            return text
        text = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
        indent = "  " if text.startswith("- ") else ""
        text = fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        return text.replace("\N{NO-BREAK SPACE}", " ")

    return "\n".join(map(line, prose.split("\n")))


def _shown(example: Example) -> str:
    label = "right" if example.right else "wrong"
    mark = click.style(label, fg="green" if example.right else "red", bold=True)
    file = f", {example.file}" if example.file else ""
    lines = [f"    {line}".rstrip() for line in example.text.splitlines()]
    return "\n".join([f"  {mark}{file}:", *lines])
