"""`explanations.md`: a section for each code, and each of its examples gives what it says.

An example is laid over a small spec, and has to say only what it is about. Its keys are those of a
stage or those of a spec. A stage that does not say otherwise has the streams x and y, each moved
by a function of the other, and gives both; its functions are linear. Examples with the names of
files are those files, the first of them being the spec. Command lines are run beside the files of
their section, training aside.
"""

from __future__ import annotations

import re
import shlex
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import archspec
import compiler
import runners
from archspec.cli import main
from archspec.diagnostics import SpecError
from archspec.explanations import Example, explanations, parse
from archspec.finding import zoo
from archspec.loading import Loaded, load
from archspec.spec import Spec
from archspec.tree import read
from compiler.resolve import resolve

TEXT = Path(str(archspec.__file__)).with_name("explanations.md").read_text(encoding="utf-8")
SMALL = {
    "archspec": 1,
    "name": "small",
    "summary": "A small network",
    "input": {"image": [1, 8, 8]},
    "stem": [{"patch_embed": {"patch": 4, "width": 16}}],
    "stages": {"trunk": {}},
    "head": [{"pool": "mean"}, {"linear": "classes"}],
    "task": {"classify": 10},
    "train": {"epochs": 1, "batch": 4, "learning_rate": 1e-3},
}
RESIDUAL = ["layer_norm", {"linear": "channels"}]

Group = tuple[str, bool, tuple[Example, ...]]
"""Examples that belong together: files side by side, or one."""


def groups() -> list[Group]:
    found: list[Group] = []
    for code, explanation in explanations().items():
        for (right, named), together in groupby(
            explanation.examples, lambda example: (example.right, bool(example.file))
        ):
            each = tuple(together)
            found += [(code, right, each)] if named else [(code, right, (e,)) for e in each]
    return found


def name(group: Group) -> str:
    code, right, _ = group
    return f"{code}-{'right' if right else 'wrong'}"


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("group", groups(), ids=name)
def test_an_example_gives_what_it_says(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    code, right, examples = group
    if examples[0].language == "console":
        write_files(explanations()[code].examples)
        prepare_training(monkeypatch)
        *before, (exit_code, output) = [run(line) for line in examples[0].text.splitlines()]
        assert all(exit_code == 0 for exit_code, _ in before), before
        codes = re.findall(r"error\[(E\d+)\]", output)
        assert exit_code == (0 if right else 2), output
    else:
        codes, output = mistakes(code, examples)
    assert set(codes) == (set() if right else {code}), output


def mistakes(code: str, examples: tuple[Example, ...]) -> tuple[list[str], str]:
    """The codes that a spec gives where it is checked, or where its training begins."""
    try:
        loaded = read_example(examples)
        resolve(loaded)
        if code >= "E6":
            begin_training(loaded)
    except SpecError as error:
        return [mistake.code for mistake in error.diagnostics], str(error)
    return [], ""


def read_example(examples: tuple[Example, ...]) -> Loaded:
    if not examples[0].file:
        return load(completed(read(examples[0].text, "example").plain()))
    write_files(examples)
    return load(examples[0].file)


def write_files(examples: tuple[Example, ...]) -> None:
    for example in examples:
        if example.file:
            Path(example.file).write_text(example.text, encoding="utf-8")


def completed(given: Any) -> dict[str, Any]:
    """The small spec with a part of it given."""
    of_spec = bool(set(given) & set(Spec.model_fields))
    spec = {**SMALL, **(given if of_spec else {"stages": {"trunk": given}})}
    stages = {stage: completed_stage(keys) for stage, keys in spec["stages"].items()}
    return {**spec, "stages": stages}


def completed_stage(given: dict[str, Any]) -> dict[str, Any]:
    if "coupling" in given:
        path = zoo() / "couplings" / f"{given['coupling']}.yaml"
        coupling: Any = read(path.read_text(encoding="utf-8"), path.name).plain()
        return {"depth": 3, "functions": dict.fromkeys(coupling["functions"], RESIDUAL), **given}
    stage = {
        "depth": 3,
        "streams": {"x": "input", "y": "input"},
        "update": ["x += F(y)", "y += G(x)"],
        **given,
    }
    called = re.findall(r"\b([A-Z]\w*)\(", " ".join(map(str, stage["update"])))
    functions = dict.fromkeys(called, RESIDUAL)
    output = f"concat({', '.join(stage['streams'])})"
    return {"functions": functions, "output": output, **stage}


def begin_training(loaded: Loaded) -> None:
    """Look for the data of a spec, in a folder with photographs of cats and dogs."""
    from PIL import Image

    from runners.data import open_data
    from runners.train import recipe_and_data

    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = Path("photos", part, kind)
            folder.mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    _, entry = recipe_and_data(loaded)
    open_data(loaded, entry, seed=0)


# Command lines ------------------------------------------------------------------------------------


def prepare_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training end before its first epoch, on a machine without a GPU."""
    from runners.run_folder import TrainResult
    from runners.train import Best, Standing

    result = TrainResult("accuracy", 0.5, 1.0, 0.5, 1, 1, 0.0, 1, "cpu", "run")
    monkeypatch.setattr("runners.train.train_on", lambda *_: Standing(1, 0.0, Best(1, 0.5, 1.0)))
    monkeypatch.setattr("runners.train.conclude", lambda *_: result)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def run(line: str) -> tuple[int, str]:
    """The exit code and the output of `$ archspec …`."""
    prompt, program, *arguments = shlex.split(line)
    assert (prompt, program) == ("$", "archspec")
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


# Sections -----------------------------------------------------------------------------------------


def test_every_code_is_explained_once_and_in_order() -> None:
    packages = (archspec, compiler, runners)
    sources = [
        path.read_text(encoding="utf-8")
        for package in packages
        for path in Path(str(package.__file__)).parent.rglob("*.py")
    ]
    codes = {code for source in sources for code in re.findall(r'"(E\d{3})"', source)}
    explained = [explanation.code for explanation in parse(TEXT)]
    assert codes - set(explained) == set(), "write a section in explanations.md"
    assert explained == sorted(codes)


@pytest.mark.parametrize("code", explanations())
def test_an_explanation_shows_what_is_wrong_and_what_is_right(code: str) -> None:
    explanation = explanations()[code]
    assert isinstance(explanation.parts[0], str)
    assert {example.right for example in explanation.examples} == {False, True}
    prose = "\n".join(part for part in explanation.parts if isinstance(part, str))
    assert "```" not in prose, "a block that is not marked as wrong or right"
    assert "\n\n\n" not in prose


@pytest.mark.parametrize("code", explanations())
def test_an_explanation_fits_any_terminal(code: str) -> None:
    exit_code, page = run(f"$ archspec explain {code}")
    assert exit_code == 0
    assert page.isascii()
    assert [line for line in page.splitlines() if len(line) > 80] == []
