"""archspec list, cite, new, and the pictures of show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from archspec.cited import cited, with_all_keys
from archspec.cli import main
from archspec.cli.couplings import shown
from archspec.diagnostics import SpecError
from archspec.finding import zoo
from archspec.loading import Loaded, load
from archspec.papers import PAPERS
from archspec.starting import written_out
from archspec.tree import read
from compiler.catalogue import SIZES, entry, sizes
from compiler.counting import costs
from compiler.resolve import resolve
from compiler.sizing import size_of

ROOT = Path(__file__).parents[2]
FILES = sorted(zoo().glob("*.yaml"))
COUPLINGS = sorted(zoo().glob("couplings/*.yaml"))


def shipped() -> list[Loaded]:
    """The specs of the zoo that are right."""
    found = []
    for path in FILES:
        try:
            loaded = load(path)
            resolve(loaded)
            found.append(loaded)
        except SpecError:
            continue
    return found


SHIPPED = shipped()


# list ---------------------------------------------------------------------------------------------


def test_list_has_a_line_for_each_spec(archspec) -> None:
    done = archspec("list")
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["name", "family", "parameters", "MACs", "data", "set", "citation"]
    left_out = re.findall(r"^warning: (\S+) is left out", done.stderr, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        path.stem for path in FILES if path.stem not in left_out
    ]
    row = next(line for line in lines if line.startswith("momrev_vit_digits "))
    assert re.split(r"\s{2,}", row.strip()) == [
        "momrev_vit_digits",
        "momentum Rev-ViT",
        "203,722",
        "3.35 M",
        "digits",
        "mangalam2022, sander2021",
    ]


def test_list_as_json_and_by_name(archspec) -> None:
    done = archspec("list", "rev_vit_[bd]*", "--json")
    assert done.returncode == 0, done.stderr
    base, digits = json.loads(done.stdout)
    assert digits["name"] == "rev_vit_digits"
    assert (base["family"], base["parameters"]) == ("Rev-ViT", 87_335_656)
    assert (base["data"], base["cite"]) == ("imagenet", ["mangalam2022"])


def test_list_by_family(archspec) -> None:
    names = [e["name"] for e in json.loads(archspec("list", "--family", "bdia", "--json").stdout)]
    assert "bdia_vit_digits" in names
    assert "rev_vit_digits" not in names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rev_vit_digit"], "there is no shipped spec `rev_vit_digit`; did you mean `rev_vit_dig"),
        (["--family", "Rev-VTi"], "there is no family `Rev-VTi`; did you mean `Rev-ViT`"),
    ],
)
def test_list_says_what_is_not_there(archspec, arguments, said) -> None:
    done = archspec("list", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr


@pytest.mark.parametrize("loaded", SHIPPED, ids=lambda loaded: loaded.spec.name)
def test_counting_each_function_once_gives_the_cost_of_all_layers(loaded: Loaded) -> None:
    """Deep networks are cut to 3 layers in each stage: all of theirs take long."""
    depths = {name: stage.depth for name, stage in loaded.spec.stages.items()}
    if sum(depths.values()) > 30:
        cut = [f"stages.{name}.depth=3" for name, depth in depths.items() if depth > 3]
        loaded = load(loaded.spec.name, cut)
    cost = costs(resolve(loaded)).values()
    assert size_of(resolve(loaded)).macs == sum(part.macs or 0 for part in cost)


def test_the_sizes_that_are_kept_are_those_of_the_specs() -> None:
    message = "run: python -m compiler.catalogue"
    assert json.loads(SIZES.read_text(encoding="utf-8")) == json.loads(sizes()), message


def test_a_spec_that_was_changed_is_counted_anew() -> None:
    deeper = [entry(load("lista", [f"stages.trunk.depth={n}"])).parameters for n in (3, 4)]
    assert deeper[0] * 4 == deeper[1] * 3


def test_list_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "from archspec.cli import main\n"
        "try: main(['list'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_list_has_the_couplings() -> None:
    done = CliRunner().invoke(main, ["list", "--couplings"])
    assert done.exit_code == 0, done.stderr
    assert re.search(r"^additive +x1 x2 +x1 \+= F\(x2\) +gomez2017, ", done.stdout, re.MULTILINE)
    done = CliRunner().invoke(main, ["list", "--couplings", "momentum*", "--json"])
    found = {each["coupling"]: each["update"] for each in json.loads(done.stdout)}
    assert found["momentum"] == ["v = gamma*v + (1 - gamma)*F(x)", "x += v"]
    assert "additive" not in found
    done = CliRunner().invoke(main, ["list", "--couplings", "momentun"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no shipped coupling `momentun`; did you mean `momentum`" in done.stderr


def test_a_family_is_what_a_spec_says_or_its_first_paper() -> None:
    assert entry(load("revnet_digits")).family == "RevNet"
    assert entry(load("revnet_digits", ["family=mine"])).family == "mine"
    assert entry(load("revnet_digits", ["cite=[]"])).family is None


# cite ---------------------------------------------------------------------------------------------


def test_cite_prints_a_spec_and_its_couplings(archspec) -> None:
    done = archspec("cite", "vit_digits")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^@\w+\{(\w+),$", done.stdout, re.MULTILINE) == [
        "dosovitskiy2021",
        "vaswani2017",
    ]
    assert "  title = {{Attention Is All You Need}}," in done.stdout
    assert "Łukasz Kaiser" in done.stdout


def test_cite_follows_a_setting_to_another_coupling(archspec) -> None:
    done = archspec("cite", "rev_vit_digits", "--set", "stages.trunk.coupling=momentum_pair")
    assert "@inproceedings{sander2021," in done.stdout
    assert "kitaev2020" not in done.stdout


def test_an_unknown_paper_is_told_with_its_place(archspec, tmp_path: Path) -> None:
    text = "archspec: 1\nname: mine\nextends: rev_vit_digits\ncite: [gomez2017, sandr2021]\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = archspec("cite", "mine.yaml")
    assert done.returncode == 0
    assert re.findall(r"^@\w+\{(\w+),$", done.stdout, re.MULTILINE)[0] == "gomez2017"
    assert "left out: mine.yaml:4:19: `sandr2021` is no paper that archspec knows" in done.stderr
    assert "did you mean `sander2021`" in done.stderr


@pytest.mark.parametrize(("key", "paper"), PAPERS.items(), ids=PAPERS)
def test_papers_have_all_that_bibtex_asks_for(key, paper) -> None:
    text = paper.bibtex(key)
    assert key.rstrip("abcdefghijklmnopqrstuvwxyz").endswith(str(paper.year))
    assert key.startswith(paper.authors[0].rpartition(" ")[2].lower())
    assert bool(paper.booktitle) != bool(paper.journal)
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[&%#]", text.replace(paper.url, ""))
    assert paper.reference.endswith(f", {paper.venue}")


@pytest.mark.parametrize("path", [*FILES, *COUPLINGS], ids=lambda p: p.stem)
def test_shipped_files_cite_known_papers(path: Path) -> None:
    cite = read(path.read_text(encoding="utf-8"), path.name).map["cite"].plain()
    assert isinstance(cite, list)
    assert set(cite) <= set(PAPERS)


# new ----------------------------------------------------------------------------------------------


def test_a_new_spec_is_right_and_trains(archspec, tmp_path: Path) -> None:
    done = archspec("new", "my_variant", "--from", "momrev_vit_digits")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "archspec check my_variant.yaml",
        "archspec build my_variant.yaml",
        "archspec train my_variant.yaml",
    ]
    text = (tmp_path / "my_variant.yaml").read_text(encoding="utf-8")
    assert "      - v1 = gamma*v1 + (1 - gamma)*F(x2)\n" in text
    assert "coupling:" not in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    for command in (["check"], ["train", "--quiet", "--set", "train.epochs=1"]):
        change = ["--set", "train.warmup=0"] if command[0] == "train" else []
        ran = archspec(command[0], "my_variant.yaml", *command[1:], *change)
        assert ran.returncode == 0, ran.stderr


def test_the_schema_that_a_new_spec_names_is_there(archspec, tmp_path: Path) -> None:
    archspec("new", "mine", "--from", "rev_vit_digits")
    first = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(file:///\S+)", first)
    assert found
    assert found[1] == (ROOT / "archspec/schema/archspec-1.json").as_uri()


@pytest.mark.parametrize("loaded", SHIPPED, ids=lambda loaded: loaded.spec.name)
def test_what_is_written_out_is_the_same_spec(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = with_all_keys(loaded)
    path.write_text(written_out(tree, "mine", loaded.spec.name), encoding="utf-8")
    summary, cite = f"A variant of {loaded.spec.name}", tuple(cited(loaded))
    own = {"name": "mine", "summary": summary, "cite": cite}
    again = load(path)
    assert again.spec == loaded.spec.model_copy(update=own)
    assert cited(again) == cited(loaded)
    resolve(again)


def test_a_new_spec_may_extend(archspec, tmp_path: Path) -> None:
    assert archspec("new", "first", "--from", "rev_vit_digits", "--extends").returncode == 0
    assert archspec("new", "second", "--from", "first.yaml", "--extends").returncode == 0
    assert "\nextends: first\n" in (tmp_path / "second.yaml").read_text(encoding="utf-8")
    assert archspec("check", "first.yaml", "second.yaml").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["../mine", "--from", "rev_vit_digits"], "`../mine` cannot be a name: names begin with"),
        (["mine.yaml", "--from", "rev_vit_digits"], "found `mine.yaml`: write `mine`"),
        (["there", "--from", "rev_vit_digits"], "there.yaml is there already: not overwritten"),
        (["mine", "--from", "rev_vit_digit"], "did you mean `rev_vit_digits`?"),
        (["mine"], "Missing option '--from'"),
        (["mine", "--from", "far/off.yaml", "--extends"], "leave out --extends"),
        (["link", "--from", "rev_vit_digits"], "link.yaml is there already: not overwritten"),
        (["a.", "--from", "rev_vit_digits"], "no file of Windows can be called so"),
        (["Con.b", "--from", "rev_vit_digits"], "no file of Windows can be called so"),
    ],
)
def test_new_refuses(here: Path, arguments, said) -> None:
    (here / "there.yaml").write_text("mine\n")
    (here / "link.yaml").symlink_to("nowhere.yaml")
    (here / "far").mkdir()
    own = "archspec: 1\nname: off\nextends: rev_vit_digits\n"
    (here / "far" / "off.yaml").write_text(own)
    done = CliRunner().invoke(main, ["new", *arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["far", "link.yaml", "there.yaml"]
    assert (here / "there.yaml").read_text() == "mine\n"
    assert not (here / "link.yaml").exists()


def test_new_prints_commands_that_allow_what_it_was_allowed(here: Path) -> None:
    given = ["new", "mine", "--from", "rev_vit_digits", "--allow-modules", "a,b"]
    lines = CliRunner().invoke(main, given).stdout.splitlines()
    assert lines[0] == "archspec check mine.yaml --allow-modules a --allow-modules b"


# show ---------------------------------------------------------------------------------------------

PAIR = """
# one of 6 layers of trunk:
#
# x1  x2      v1      v2
# │   │       │       │
# │   ●──[F]─▶⊕       │     v1 = gamma*v1 + (1 - gamma)*F(x2)
# │   │       │       │
# ⊕◀──┼───────●       │     x1 += v1
# │   │       │       │
# ●───┼───────┼──[G]─▶⊕     v2 = gamma*v2 + (1 - gamma)*G(x1)
# │   │       │       │
# │   ⊕◀──────┼───────●     x2 += v2
# ▼   ▼       ▼       ▼
"""


def test_show_draws_a_layer(archspec, tmp_path: Path) -> None:
    done = archspec("show", "momrev_vit_digits")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(PAIR)
    (tmp_path / "again.yaml").write_text(done.stdout, encoding="utf-8")
    assert load(tmp_path / "again.yaml").spec == load("momrev_vit_digits").spec


def test_the_readmes_picture_is_what_show_draws(archspec, tmp_path: Path) -> None:
    done = archspec("show", "momrev_vit_digits", "--svg", "pair.svg")
    assert done.returncode == 0, done.stderr
    assert "written: pair.svg" in done.stderr
    drawn = (tmp_path / "pair.svg").read_text(encoding="utf-8")
    assert drawn == (ROOT / "docs" / "momentum_pair.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_picture_replaces_only_pictures(archspec, tmp_path: Path) -> None:
    path = tmp_path / "layer.svg"
    assert archspec("show", "momrev_vit_digits", "--svg", "layer.svg").returncode == 0
    assert archspec("show", "bdia_vit_digits", "--svg", "layer.svg").returncode == 0
    edited = path.read_text(encoding="utf-8").replace("#fbfbfd", "#ffffff")
    path.write_text(edited, encoding="utf-8")
    done = archspec("show", "momrev_vit_digits", "--svg", "layer.svg")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "not replaced" in done.stderr
    assert path.read_text(encoding="utf-8") == edited
    done = archspec("show", "momrev_vit_digits", "--svg", "no/where.svg")
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["layer.svg"]


@pytest.mark.parametrize("name", ["momentum", str(zoo() / "couplings" / "momentum.yaml")])
def test_show_prints_a_coupling_with_its_inverse(here: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["show", name])
    assert done.exit_code == 0, done.stderr
    for part in ("  - x += v\n", "#   x -= v\n", "#   v = (v - (1 - gamma)*F(x))/gamma\n"):
        assert part in done.stdout
    assert done.stdout.endswith(
        "#   Sander, Ablin, Blondel and Peyré 2021, Momentum Residual Neural Networks, ICML\n"
    )
    tree = read(done.stdout, "shown").plain()
    assert tree == read((zoo() / "couplings" / "momentum.yaml").read_text(), "file").plain()
    schema = re.match(r"# yaml-language-server: \$schema=file://(\S+)", done.stdout)
    assert schema
    assert Path(schema[1]).name == "coupling-1.json"
    done = CliRunner().invoke(main, ["show", name, "--resolved"])
    assert done.exit_code == 2
    assert "is a coupling" in done.stderr


@pytest.mark.parametrize("path", COUPLINGS, ids=lambda p: p.stem)
def test_every_coupling_is_drawn(path: Path) -> None:
    assert "\n# one layer:\n" in shown(path)


def test_show_of_a_spec_that_is_wrong(archspec, tmp_path: Path) -> None:
    text = "archspec: 1\nname: wrong\nextends: rev_vit_digits\nstages: {trunk: {depth: 0}}\n"
    (tmp_path / "wrong.yaml").write_text(text)
    done = archspec("show", "wrong.yaml", "--svg", "layer.svg")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "wrong.yaml:4:25: error[E107]" in done.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["wrong.yaml"]


def test_a_coupling_that_is_not_drawn_says_why(archspec, tmp_path: Path) -> None:
    folder = tmp_path / "couplings"
    folder.mkdir()
    text = "archspec: 1\ncoupling: odd\nsummary: x\nstreams: {a: input, b: input}\n"
    rest = "functions: [F]\nupdate: [a += gama*F(b)]\noutput: a\n"
    (folder / "odd.yaml").write_text(text + rest, encoding="utf-8")
    done = archspec("show", "odd")
    assert done.returncode == 0
    assert "# not drawn: " in done.stdout
    assert "gama" in done.stdout.partition("not drawn")[2]


def test_pipes_get_utf8_whatever_the_system_writes(tmp_path: Path) -> None:
    """On Windows a pipe's encoding lacks `│` and half of the authors' names."""
    for arguments in (["show", "additive"], ["cite", "rev_vit_s"]):
        done = subprocess.run(
            [sys.executable, "-m", "archspec", *arguments],
            env={**os.environ, "PYTHONIOENCODING": "cp1252"},
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        done.stdout.decode("utf-8")
