"""archspec explain."""

from __future__ import annotations

import subprocess
import sys

import pytest

from archspec.explanations import explanations

PAGE = """\
E504  a coupling and an update in one stage

`coupling: additive` stands for the update, the streams, the constants and the
output that are in the coupling's file. A stage that has an update of its own as
well says two things about one layer.

  wrong:
    coupling: additive
    update:
      - x1 += F(x2)
      - x2 += G(x1)

Take the coupling:

  right:
    coupling: additive
"""


def test_a_page_reads_well_in_a_pipe(archspec) -> None:
    done = archspec("explain", "e504")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(PAGE)


def test_the_names_of_files_are_told(archspec) -> None:
    done = archspec("explain", "E502")
    assert "  wrong, small.yaml:\n    archspec: 1\n    name: small\n" in done.stdout


def test_several_codes_are_explained_in_turn(archspec) -> None:
    both = archspec("explain", "E301", "E104").stdout
    assert both == archspec("explain", "E301").stdout + "\n\n" + archspec("explain", "E104").stdout


def test_without_a_code_all_are_listed(archspec) -> None:
    done = archspec("explain")
    lines = [f"{code}  {known.title}" for code, known in explanations().items()]
    assert done.stdout.splitlines() == lines


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("E31", "there is no error `E31`; did you mean E301?"),
        ("E999", "there is no error `E999`; `archspec explain` lists them all"),
        ("nothing", "there is no error `nothing`; `archspec explain` lists them all"),
        ("", "there is no error ``; `archspec explain` lists them all"),
    ],
)
def test_an_unknown_code_gets_the_nearest(archspec, code, said) -> None:
    done = archspec("explain", "E301", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys\n"
        "from archspec.cli import main\n"
        "try: main(['explain', 'E301'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'rich', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
