"""Specs that start from others, and stages that start from couplings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from archspec.diagnostics import SpecError
from archspec.finding import find
from archspec.loading import Loaded, load
from archspec.shapes import Tokens
from archspec.spec import Drawn, Learned
from archspec.training import Sgd

PARENT = """\
archspec: 1
name: parent
summary: The parent
cite: [a, b]
input: {image: [1, 8, 8]}
stem: [patch_embed: {patch: 4, width: 16}, position]
stages:
  trunk:
    depth: 3
    coupling: momentum
    constants: {gamma: {learn: 0.9, within: [0.5, 0.99]}}
    functions: {F: [layer_norm, linear: channels]}
head: [pool: mean, linear: classes]
task: {classify: 10}
data: {digits: {validation: 0.2}}
train: {epochs: 3, batch: 8, learning_rate: 0.1, clip: 1.0, optimizer: {sgd: {momentum: 0.5}}}
"""
CHILD = "archspec: 1\nname: child\nextends: parent\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parent in it."""
    monkeypatch.chdir(tmp_path)
    Path("parent.yaml").write_text(PARENT, encoding="utf-8")
    return tmp_path


def child(text: str, *settings: str) -> Loaded:
    """The child of the parent that says `text` besides."""
    Path("child.yaml").write_text(CHILD + text, encoding="utf-8")
    return load("child.yaml", settings)


def wrong(text: str, *settings: str) -> str:
    """What the error of such a child says."""
    with pytest.raises(SpecError) as caught:
        child(text, *settings)
    return str(caught.value)


@pytest.mark.usefixtures("folder")
class TestExtends:
    def test_a_child_that_says_nothing_is_its_parent_by_another_name(self) -> None:
        assert child("").spec == load("parent").spec.model_copy(update={"name": "child"})

    def test_the_child_stands_over_the_parent(self) -> None:
        spec = child("summary: Mine\nstages: {trunk: {depth: 5}}\ntrain: {epochs: 9}\n").spec
        assert (spec.summary, spec.cite) == ("Mine", ("a", "b"))
        assert (spec.stages["trunk"].depth, spec.stages["trunk"].output) == (5, "x")
        assert spec.train
        assert (spec.train.epochs, spec.train.batch) == (9, 8)

    def test_lists_replace(self) -> None:
        spec = child("cite: [c]\nstages: {trunk: {functions: {F: [tanh]}}}\n").spec
        assert spec.cite == ("c",)
        assert len(spec.stages["trunk"].functions["F"]) == 1

    def test_entries_of_a_list_are_changed_by_number(self) -> None:
        spec = child("cite: {1: c}\nstem: {0: {patch_embed: {width: 32}}}\n").spec
        assert spec.cite == ("a", "c")
        assert spec.stem[0].model_dump() == {"patch_embed": {"patch": 4, "width": 32}}
        assert len(spec.stem) == 2

    @pytest.mark.parametrize("key", ["data", "stem", "cite"])
    def test_null_takes_away(self, key: str) -> None:
        assert not getattr(child(f"{key}: null\n").spec, key)

    def test_null_takes_a_stage_away(self) -> None:
        text = (
            "stages: {trunk: null, other: {depth: 1, coupling: residual, functions: {F: [tanh]}}}"
        )
        assert list(child(text).spec.stages) == ["other"]

    def test_another_kind_replaces(self) -> None:
        spec = child("data: {cifar10: {workers: 2}}\ninput: {tokens: [4, 8]}\nstem: []\n").spec
        assert spec.data
        assert spec.data.model_dump(exclude_unset=True) == {"cifar10": {"workers": 2}}
        assert spec.input.shape == Tokens(4, 8)

    def test_the_same_kind_merges(self) -> None:
        spec = child(
            "train: {optimizer: {sgd: {nesterov: true}}}\ndata: {digits: {workers: 1}}"
        ).spec
        assert spec.train
        assert spec.train.optimizer == Sgd(momentum=0.5, nesterov=True)
        assert spec.data
        assert (spec.data.validation, spec.data.workers) == (0.2, 1)

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("0.5", 0.5),
            ("1/depth", "1/depth"),
            ("{learn: 0.8}", Learned(learn=0.8, within=(0.5, 0.99))),
            ("{per: channel}", Learned(learn=0.9, within=(0.5, 0.99), per="channel")),
            ("{within: null}", Learned(learn=0.9)),
            ("{draw: [1, -1], evaluate: 1}", Drawn(draw=(1, -1), evaluate=1)),
        ],
    )
    def test_another_way_to_make_a_constant_replaces(self, written: str, expected: object) -> None:
        spec = child(f"stages: {{trunk: {{constants: {{gamma: {written}}}}}}}").spec
        assert spec.stages["trunk"].constants["gamma"] == expected

    def test_a_coupling_replaces_the_program(self) -> None:
        stage = child("stages: {trunk: {coupling: euler}}").spec.stages["trunk"]
        assert (stage.constants, stage.update) == ({"h": 0.5}, ("x += h*F(x)",))
        assert list(stage.streams) == ["x"]

    def test_an_update_replaces_the_coupling(self) -> None:
        program = "streams: {x: input}, update: [x += gamma*F(x)], output: x, constants: {gamma: 1}"
        stage = child(f"stages: {{trunk: {{{program}}}}}").spec.stages["trunk"]
        assert (stage.update, stage.constants) == (("x += gamma*F(x)",), {"gamma": 1.0})
        assert (stage.depth, stage.coupling) == (3, None)

    def test_a_coupling_in_the_child_replaces_an_update_in_the_parent(self) -> None:
        program = "streams: {x: input}, update: [x += F(x)], output: x, constants: null"
        child(f"stages: {{trunk: {{{program}}}}}")
        Path("grandchild.yaml").write_text(
            "archspec: 1\nname: g\nextends: child\nstages: {trunk: {coupling: midpoint}}\n",
            encoding="utf-8",
        )
        assert list(load("grandchild").spec.stages["trunk"].streams) == ["a", "b"]

    def test_mistakes_point_into_the_file_that_made_them(self) -> None:
        Path("parent.yaml").write_text(PARENT.replace("depth: 3", "deph: 3"), encoding="utf-8")
        said = wrong("train: {epochs: x}")
        assert "child.yaml:4:17: error[E105] expected a whole number, found `x`" in said
        assert "parent.yaml:9:5: error[E103] unknown key `deph`" in said

    def test_a_coupling_is_sought_beside_the_file_that_names_it(self, folder: Path) -> None:
        (folder / "couplings").mkdir()
        mine = Path(find("euler", folder, None, "couplings")).read_text(encoding="utf-8")
        mine = mine.replace("h: 0.5", "h: 0.25")
        (folder / "couplings" / "mine.yaml").write_text(mine, encoding="utf-8")
        assert (
            child("stages: {trunk: {coupling: mine}}").spec.stages["trunk"].constants["h"] == 0.25
        )
        setting = "stages.trunk.coupling=mine"
        assert child("", setting).spec.stages["trunk"].constants["h"] == 0.25

    def test_a_spec_may_extend_the_shipped_one_of_its_name(self, folder: Path) -> None:
        text = "archspec: 1\nname: rev_vit_digits\nextends: rev_vit_digits\ntrain: {epochs: 1}\n"
        (folder / "rev_vit_digits.yaml").write_text(text, encoding="utf-8")
        train = load("rev_vit_digits").spec.train
        assert train
        assert train.epochs == 1

    @pytest.mark.parametrize(
        ("parent", "message"),
        [
            ("parnt", "child.yaml:3:10: error[E501] there is no spec `parnt`"),
            ("../parent", "there is no spec `../parent`"),
            ("/etc/passwd", "there is no spec `/etc/passwd`"),
            ("parent.yaml", "there is no spec `parent.yaml`"),
            ("couplings/momentum", "there is no spec `couplings/momentum`"),
            ("x" * 300, "there is no spec `xxx"),
            ('"\\0"', "there is no spec `\\x00`"),
            ('""', "there is no spec ``"),
            ("[parent]", "child.yaml:3:10: error[E105] expected text, found a list"),
            ("child", "child.yaml:3:10: error[E502] `extends` goes round in a circle: child → "),
        ],
    )
    def test_a_parent_that_is_not_there(self, parent: str, message: str) -> None:
        Path("child.yaml").write_text(CHILD.replace("parent", parent), encoding="utf-8")
        with pytest.raises(SpecError) as caught:
            load("child.yaml")
        assert message in str(caught.value)
        if parent == "parnt":
            assert "did you mean `parent`?" in str(caught.value)

    def test_a_circle_is_refused(self) -> None:
        for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
            text = f"archspec: 1\nname: {name}\nextends: {parent}\n"
            Path(f"{name}.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match=r"c\.yaml:3:10.*E502.* a → b → c → a"):
            load("a")

    def test_a_long_line_of_ancestors_is_refused(self) -> None:
        for i in range(20):
            text = f"archspec: 1\nname: s{i}\nextends: s{i + 1}\n"
            Path(f"s{i}.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match=r"E502.* more than 16 ancestors"):
            load("s0")

    @pytest.mark.parametrize("text", ["hello", "[1, 2]", "5"])
    def test_a_parent_that_is_no_map_is_refused(self, text: str) -> None:
        Path("parent.yaml").write_text(text, encoding="utf-8")
        assert "parent.yaml:1:1: error[E105] expected a map of keys" in wrong("")


# Couplings ---------------------------------------------------------------------------------------


def stage(**entries: Any) -> Any:
    """The one stage of a spec as it is loaded."""
    spec = load("rev_vit_digits").tree.plain()
    assert isinstance(spec, dict)
    functions = {name: ["tanh"] for name in entries.pop("names", "F")}
    spec["stages"] = {"trunk": {"depth": 1, "functions": functions, **entries}}
    return load(spec).spec.stages["trunk"]


@pytest.mark.parametrize(
    "gamma",
    [0.5, "1/depth", {"learn": 0.5, "within": [0.1, 0.9]}, {"draw": [1, 2], "evaluate": 1}],
)
@pytest.mark.parametrize("coupling", ["bdia", "momentum"])
def test_constants_of_a_coupling_may_be_made_in_another_way(coupling: str, gamma: Any) -> None:
    made = stage(coupling=coupling, constants={"gamma": gamma}).constants["gamma"]
    if isinstance(gamma, dict):
        gamma = TypeAdapter(Learned | Drawn).validate_python(gamma)
    assert made == gamma


def test_streams_of_a_coupling_may_start_in_another_way() -> None:
    made = stage(coupling="momentum", streams={"v": "V(input)"}, names="FV")
    assert made.streams == {"x": "input", "v": "V(input)"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"coupling": "momentun"}, "error[E501] there is no coupling `momentun`"),
        ({"coupling": "momentum", "constants": {"gama": 1}}, "did you mean `gamma`?"),
        ({"coupling": "momentum", "streams": {"w": "input"}}, "unknown key `w` in the streams"),
        ({"coupling": "momentum", "update": ["x = x"]}, "E504] a stage has either `update` or"),
        ({"coupling": "additive"}, "E505] coupling additive needs the function `G`"),
        ({"coupling": 5}, "E105] expected text, found `5`"),
        ({"coupling": "rev_vit_digits"}, "there is no coupling `rev_vit_digits`"),
        ({"coupling": "momentum", "constants": {"gamma": None}, "depth": 0}, "greater than"),
    ],
)  # fmt: skip
def test_what_a_coupling_refuses(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        stage(**entries)
    assert message in str(caught.value)


def test_a_coupling_that_cannot_be_read_hides_no_other_mistake(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(PARENT.replace("momentum\n", "momentun\n").replace("batch", "bach"))
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert [d.code for d in caught.value.diagnostics] == ["E501", "E103"]


def test_the_files_of_a_spec_are_bounded_together(tmp_path: Path) -> None:
    filling = f"# {'x' * 60_000}\n"
    (tmp_path / "parent.yaml").write_text(f"{PARENT}{filling}")
    (tmp_path / "spec.yaml").write_text(CHILD)
    assert load(tmp_path / "spec.yaml").spec.name == "child"
    (tmp_path / "spec.yaml").write_text(f"{CHILD}{filling}")
    with pytest.raises(SpecError, match=r"spec.yaml:3:10: error\[E101\] this and the files before"):
        load(tmp_path / "spec.yaml")


def test_a_broken_coupling_is_read_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("archspec: 1\ncoupling: mine\nx: 1\n")
    stages = "".join(
        f"  s{i}: {{depth: 1, coupling: mine, functions: {{F: [tanh]}}}}\n" for i in range(5)
    )
    head = "archspec: 1\nname: a\nsummary: b\ninput: {features: [4]}\ntask: {classify: 4}\n"
    (tmp_path / "spec.yaml").write_text(f"{head}stages:\n{stages}")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "spec.yaml")
    assert [d.code for d in caught.value.diagnostics] == ["E104", "E103"]


def test_mistakes_in_a_coupling_point_into_its_file(tmp_path: Path) -> None:
    (tmp_path / "couplings").mkdir()
    text = "archspec: 1\ncoupling: momentum\nsummary: s\nstreams: {x: input}\nfunctions: [F]\n"
    (tmp_path / "couplings" / "mine.yaml").write_text(text + "update: [x += F(x)]\nouput: x\n")
    spec = tmp_path / "spec.yaml"
    spec.write_text(PARENT.replace("momentum\n", "mine\n"))
    with pytest.raises(SpecError) as caught:
        load(spec)
    said = str(caught.value)
    assert "mine.yaml:7:1: error[E103] unknown key `ouput`" in said
    assert "spec.yaml" not in said
