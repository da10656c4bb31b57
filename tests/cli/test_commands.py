"""What all commands have in common: help, mistakes, check, show, schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from archspec.cli import COMMANDS, main
from archspec.finding import zoo
from archspec.loading import load
from archspec.tree import read
from compiler.resolve import resolve

SPECS = sorted(zoo().glob("*.yaml"))
COUPLINGS = sorted((zoo() / "couplings").glob("*.yaml"))

WRONG = """\
archspec: 1
name: wrong
summary: A spec with mistakes
extends: momrev_vit_digits
stages:
  trunk:
    constants: {gama: 0.9}
"""


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from archspec.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'rich', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_check_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "from archspec.cli import main\n"
        "try: main(['check', 'momrev_vit_b'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_command_has_help(archspec, command) -> None:
    done = archspec(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", ["build", "train", "check", "show --resolved"])
def test_a_mistake_in_a_spec_is_told_with_its_place(archspec, tmp_path, command) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    done = archspec(*command.split(), "wrong.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "wrong.yaml:7:17: error[E103] unknown key `gama` in the constants of coupling "
        "momentum_pair\n"
        "    7 |     constants: {gama: 0.9}\n"
        "      |                 ^^^^\n"
        "  help: did you mean `gamma`?  names here: gamma\n"
        "for more: archspec explain E103\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_check_tells_the_mistakes_of_all_files(archspec, tmp_path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    (tmp_path / "empty.yaml").write_text("")
    done = archspec("check", "wrong.yaml", "rev_vit_digits", "empty.yaml", "missing.yaml")
    assert done.returncode == 2
    assert "rev_vit_digits: right" in done.stdout
    for text in ("wrong.yaml:7:17", "empty.yaml is empty", "there is no file missing.yaml"):
        assert text in done.stderr
    assert done.stderr.endswith("\nfor more: archspec explain E501 E101 E103\n")


def test_an_unknown_command_or_spec_gets_the_nearest_name(archspec) -> None:
    done = archspec("biuld", "x")
    assert done.returncode == 2
    assert "did you mean `build`" in done.stderr
    done = archspec("check", "momrev_vit_digit")
    assert done.returncode == 2
    assert "did you mean `momrev_vit_digits`" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not on this system")
@pytest.mark.parametrize("command", [["--help"], ["show", "lista"], ["list", "lista"]])
def test_a_device_that_takes_no_more_is_told(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "archspec", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write: No space left on device\n"


def test_a_coupling_is_no_spec(here: Path) -> None:
    done = CliRunner().invoke(main, ["build", "additive"])
    assert done.exit_code == 2
    assert "error[E501] `additive` is a coupling, and not a spec: " in done.stderr
    assert "`archspec show additive` prints it" in done.stderr
    (here / "dd.yaml").mkdir()
    done = CliRunner().invoke(main, ["check", "dd.yml"])
    assert "`dd`" not in done.stderr


def test_a_file_that_hides_a_shipped_spec_is_named(here: Path) -> None:
    own = "archspec: 1\nname: mine\nextends: rev_vit_digits\n"
    (here / "vit_digits.yaml").write_text(own)
    done = CliRunner().invoke(main, ["check", "vit_digits", "rev_vit_digits"])
    note = "note: `vit_digits` is vit_digits.yaml here, and not the shipped spec of that name\n"
    assert (done.exit_code, done.stderr) == (0, note)


def test_a_lone_update_says_what_it_lacks(here: Path) -> None:
    text = "archspec: 1\nname: mine\nextends: rev_vit_digits\nstages:\n  trunk:\n"
    (here / "mine.yaml").write_text(f"{text}    update: [x1 += F(x2), x2 += G(x1)]\n")
    done = CliRunner().invoke(main, ["check", "mine.yaml"])
    assert done.exit_code == 2
    assert "error[E104] `streams`, `output` are missing here" in done.stderr
    assert "help: a stage with an `update` of its own also says its `streams`" in done.stderr


def test_show_resolved_loads_again_with_origins(archspec, tmp_path) -> None:
    done = archspec("show", "momrev_vit_digits", "--resolved", "--set", "train.epochs=5")
    assert done.returncode == 0, done.stderr
    assert "gamma: 0.9  # " in done.stdout
    assert "gamma: 0.9  # momrev_vit_digits.yaml:12\n" in done.stdout
    assert "x1: input  # couplings/momentum_pair.yaml:6\n" in done.stdout
    assert "epochs: 5  # --set\n" in done.stdout
    (tmp_path / "again.yaml").write_text(done.stdout, encoding="utf-8")
    again = load(tmp_path / "again.yaml").spec
    assert again == load("momrev_vit_digits", ["train.epochs=5"]).spec


def test_show_prints_the_file(archspec) -> None:
    done = archspec("show", "rev_vit_b")
    first, _, rest = (zoo() / "rev_vit_b.yaml").read_text(encoding="utf-8").partition("\n")
    schema = (zoo().parent / "archspec/schema/archspec-1.json").as_uri()
    file = f"{first.partition('=')[0]}={schema}\n{rest}"  # which stands wherever it is saved
    assert done.stdout.startswith(file)
    drawn = done.stdout.removeprefix(file).strip().splitlines()
    assert all(line.startswith("#") for line in drawn)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_every_shipped_spec_is_right(path: Path) -> None:
    loaded = load(path)
    resolve(loaded)
    assert loaded.spec.name == path.stem
    schema = json.loads((zoo().parent / "archspec/schema/archspec-1.json").read_text())
    jsonschema.Draft7Validator(schema).validate(read(path.read_text(), path.name).plain())
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../archspec/schema/archspec-1.json"


@pytest.mark.parametrize("path", COUPLINGS, ids=lambda p: p.stem)
def test_every_coupling_fits_its_schema(path: Path) -> None:
    schema = json.loads((zoo().parent / "archspec/schema/coupling-1.json").read_text())
    jsonschema.Draft7Validator(schema).validate(read(path.read_text(), path.name).plain())


@pytest.mark.parametrize(
    ("options", "file"), [((), "archspec-1.json"), (("--coupling",), "coupling-1.json")]
)
def test_the_shipped_schemas_are_current_draft_7(archspec, options, file) -> None:
    done = archspec("schema", *options)
    shipped = (zoo().parent / "archspec/schema" / file).read_text(encoding="utf-8")
    assert done.stdout == shipped
    schema = json.loads(shipped)
    jsonschema.Draft7Validator.check_schema(schema)
    assert "prefixItems" not in shipped
    assert "$defs" not in shipped


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    schema = json.loads((zoo().parent / "archspec/schema/archspec-1.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    good = {"archspec": 1, "name": "x", "extends": "rev_vit_b"}
    assert validator.is_valid(good)
    for wrong in (
        {"sumary": "x"},
        {"stages": {"trunk": {"depht": 3}}},
        {"head": ["layer_nrm"]},
        {"head": [{"mlp": {"ration": 4}}]},
        {"train": {"precision": "fp8"}},
    ):
        assert not validator.is_valid({**good, **wrong}), wrong


def test_printed_commands_are_quoted_as_the_shell_takes_them(monkeypatch) -> None:
    from archspec.cli import shell

    arguments = ["train", "my net.yaml", "--set", "task={classify: 3}"]
    assert shell.typed(arguments) == "archspec train 'my net.yaml' --set 'task={classify: 3}'"
    monkeypatch.setattr(shell.os, "name", "nt")
    assert shell.typed(arguments) == 'archspec train "my net.yaml" --set "task={classify: 3}"'


def test_an_interrupted_command_says_so(invoked, monkeypatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("archspec.loading.load", interrupted)
    done = invoked("check", "rev_vit_digits")
    assert (done.returncode, done.stderr) == (130, "stopped\n")
