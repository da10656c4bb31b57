"""Options and arguments of several commands, without a process of their own."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from archspec.cli import main
from archspec.cli.explain import _nearest
from archspec.cli.options import allow_modules
from archspec.explanations import explanations


@click.command()
@allow_modules
def shows(packages: tuple[str, ...]) -> None:
    click.echo(" ".join(packages))


@pytest.mark.parametrize("between", [",", ", ", " ", os.pathsep])
def test_several_packages_may_be_allowed_at_once(between: str) -> None:
    both = f"mine.blocks{between}yours"
    run = CliRunner()
    assert run.invoke(shows, ["--allow-modules", both]).output == "mine.blocks yours\n"
    given = run.invoke(shows, env={"ARCHSPEC_ALLOW_MODULES": f"{both}{between}theirs"})
    assert given.output == "mine.blocks yours theirs\n"
    twice = run.invoke(shows, ["--allow-modules", "a,", "--allow-modules", f"b{between}c"])
    assert twice.output == "a b c\n"
    assert run.invoke(shows, env={"ARCHSPEC_ALLOW_MODULES": ""}).output == "\n"


@pytest.mark.parametrize(
    ("code", "offered"),
    [
        ("E31", "E301"),
        ("E3o4", "E304"),
        ("e6055", "E605"),
        ("E999", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_an_unknown_code_is_guessed_where_one_character_differs(code: str, offered: str) -> None:
    said = _nearest(code, list(explanations()))
    guess = f"did you mean {offered}?  " if offered else ""
    assert said == f"{guess}`archspec explain` lists them all"


def test_allowed_modules_reach_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "archspec: 1\nname: own\nextends: vit_digits\nstem: [module: mine.Gone]\n"
    Path("own.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(main, ["check", "own.yaml", "--allow-modules", "yours,mine"])
    assert "importing `mine` failed" in done.output
