"""Settings, `path.to.key=value`, and the ways to name a spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from archspec.data import Cifar10, Digits
from archspec.diagnostics import SpecError
from archspec.loading import load
from archspec.spec import Learned
from archspec.training import Sgd

NAME = "momrev_vit_digits"


def wrong(*settings: str) -> str:
    """What the error says of settings."""
    with pytest.raises(SpecError) as caught:
        load(NAME, settings)
    return str(caught.value)


def test_settings_change_values() -> None:
    settings = [
        "train.epochs=5",
        "train.learning_rate = 1e-3 # a comment",
        "stages.trunk.depth=24",
        "stages.trunk.constants.gamma={learn: 0.9, within: [0.5, 0.99]}",
        "train.optimizer={sgd: {momentum: 0.8}}",
        "data=digits",
        "cite=[a, b]",
        "summary='no: 5'",
        "stem.0.patch_embed.patch=4",
        "head.1=pool: max",
        "train.clip=",
    ]
    spec = load(NAME, settings).spec
    stage, train = spec.stages["trunk"], spec.train
    assert train
    assert (train.epochs, train.learning_rate, train.clip) == (5, 1e-3, None)
    assert train.optimizer == Sgd(momentum=0.8)
    assert (stage.depth, stage.constants["gamma"]) == (24, Learned(learn=0.9, within=(0.5, 0.99)))
    assert (spec.data, spec.cite, spec.summary) == (Digits(), ("a", "b"), "no: 5")
    assert [layer.model_dump(exclude_unset=True) for layer in (spec.stem[0], spec.head[1])] == [
        {"patch_embed": {"patch": 4, "width": 64}},
        {"pool": {"by": "max"}},
    ]


def test_later_settings_stand_over_earlier_ones() -> None:
    train = load(NAME, ["train.epochs=5", "train.batch=8", "train.epochs=6"]).spec.train
    assert train
    assert (train.epochs, train.batch) == (6, 8)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_coupling_is_set_before_what_changes_it(turn: int) -> None:
    settings = ["stages.trunk.coupling = momentum", "stages.trunk.constants.gamma=0.5"]
    settings = [*settings[::turn], "stages.trunk.functions.G="]
    assert load(NAME, settings).spec.stages["trunk"].constants == {"gamma": 0.5}


def test_a_setting_adds_to_what_one_value_stands_for() -> None:
    settings = ("data.cifar10=../data", "data.cifar10.workers=3", "task.classify.classes=10")
    spec = load("rev_vit_cifar10", settings).spec
    assert isinstance(spec.data, Cifar10)
    assert (spec.data.root, spec.data.workers) == ("../data", 3)
    assert spec.data.augment  # the recipe's


def test_one_setting_needs_no_list() -> None:
    loaded = load(NAME, "train.epochs=5", "mylab.blocks")
    assert loaded.spec.train
    assert (loaded.spec.train.epochs, loaded.packages) == (5, ("mylab.blocks",))


def test_a_stage_of_maps_may_be_set() -> None:
    stage = "stages.more={depth: 1, streams: {x: input}, maps: {A: actnorm}, "
    more = load(NAME, f"{stage}update: [x = A(x)], output: x}}").spec.stages["more"]
    assert (more.functions, list(more.maps)) == ({}, ["A"])


def test_a_whole_stage_may_be_set() -> None:
    stage = "stages.more={depth: 1, coupling: euler, functions: {F: [tanh]}}"
    assert list(load(NAME, [stage]).spec.stages) == ["trunk", "more"]


GOLDEN = {
    "train.epoch=5": """\
--set:1:7: error[E103] unknown key `epoch`
    1 | train.epoch=5
      |       ^^^^^
  help: did you mean `epochs`?  names here: accumulate, batch, clip, compile, ema, epochs, \
final_learning_rate, label_smoothing, layer_decay, learning_rate, max_minutes, optimizer, \
parallel, patience, precision, schedule, seed, start_from, warmup, watch, weight_decay""",
    " train.epochs = five": """\
--set:1:17: error[E105] expected a whole number, found `five`
    1 |  train.epochs = five
      |                 ^^^^""",
    "stages.trnk.depth=3": """\
--set:1:8: error[E503] there is no stage `trnk`
    1 | stages.trnk.depth=3
      |        ^^^^
  help: did you mean `trunk`?  names here: trunk""",
    "stages.trunk.constants.gama=3": """\
--set:1:24: error[E103] unknown key `gama` in the constants of coupling momentum_pair
    1 | stages.trunk.constants.gama=3
      |                        ^^^^
  help: did you mean `gamma`?  names here: gamma""",
    "stages.trunk.constants.gamma={learn: 0.9, within: [0.5, high]}": """\
--set:1:57: error[E105] expected a number, found `high`
    1 | stages.trunk.constants.gamma={learn: 0.9, within: [0.5, high]}
      |                                                         ^^^^""",
    "stem.7=relu": """\
--set:1:6: error[E503] there is no entry 7 in this list, which has 2, from 0
    1 | stem.7=relu
      |      ^""",
    "stem.x=relu": """\
--set:1:6: error[E105] expected a list, found a map
    1 | stem.x=relu
      |      ^""",
    "head.1.pool=median": """\
--set:1:13: error[E107] `median` is not one of the choices here
    1 | head.1.pool=median
      |             ^^^^^^
  help: did you mean `mean`?  names here: first, max, mean""",
    "head.2=linear": """\
--set:1:8: error[E104] `out` is missing here
    1 | head.2=linear
      |        ^^^^^^""",
    "extends=vit_b": """\
--set:1:1: error[E503] `extends` cannot be set: settings come after inheritance
    1 | extends=vit_b
      | ^^^^^^^""",
    "stages.trunk.depth=[1, 2": """\
--set:1:25: error[E101] not readable as YAML: while parsing a flow sequence, expected ',' or \
']', but got '<stream end>'
    1 | stages.trunk.depth=[1, 2
      |                         ^
  help: the `[` at --set:1:20 is not closed""",
    "name=!!str 5": """\
--set:1:6: error[E101] the tag `!!str` is not used in specs
    1 | name=!!str 5
      |      ^""",
    "train.epochs": """\
--set:1:1: error[E503] `train.epochs` is not of the form path.to.key=value
    1 | train.epochs
      | ^^^^^^^^^^^^
  help: for example: train.epochs=5""",
    "train..epochs=5": """\
--set:1:1: error[E503] `train..epochs=5` is not of the form path.to.key=value
    1 | train..epochs=5
      | ^^^^^^^^^^^^^^^
  help: for example: train.epochs=5""",
    "=5": """\
--set:1:1: error[E503] `=5` is not of the form path.to.key=value
    1 | =5
      | ^^
  help: for example: train.epochs=5""",
}  # fmt: skip


@pytest.mark.parametrize("setting", GOLDEN)
def test_a_wrong_setting_is_shown_as_it_was_given(setting: str) -> None:
    assert wrong(setting) == GOLDEN[setting]


def test_all_wrong_settings_are_told() -> None:
    said = wrong("train", "extends=x", "stem.9=x", "stages.y.depth=1", "train.epochs=[")
    assert said.count("error[") == 5


@pytest.mark.parametrize(
    "setting",
    ["stem.²=x", "stem.٣=x", f"stem.{'9' * 5000}=x", "stem.-1=x", "a\x00b=1", "train.epochs=\x00",
     "train.epochs=\ud800", "train.epochs={a: &a [*a]}", "train=1\n---\n2", "name=" + "x" * 99],
)  # fmt: skip
def test_odd_settings_are_refused(setting: str) -> None:
    assert wrong(setting).startswith("--set:")


# Names of specs ----------------------------------------------------------------------------------


def test_a_spec_is_named_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "archspec: 1\nname: {}\nextends: vit_digits\n"
    for path, name in (("mine.yaml", "a"), ("other.yml", "b"), ("folder/spec.yaml", "c")):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text.format(name), encoding="utf-8")
    Path("plain").write_text(text.format("d"), encoding="utf-8")
    named: list[str | Path] = [
        "mine.yaml",
        "mine",
        tmp_path / "mine.yaml",
        "other.yml",
        "folder/spec",
        "plain",
    ]
    assert [load(what).spec.name for what in named] == ["a", "a", "a", "b", "c", "d"]
    assert load("vit_digits").spec.name == "vit_digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("momrev_vit_digit", "there is no spec `momrev_vit_digit`"),
        ("absent.yaml", "there is no file absent.yaml"),
        ("vit_digits.yaml", "there is no file vit_digits.yaml"),
        ("", "there is no spec ``"),
        (".", "there is no spec `.`"),
        ("x" * 5000, "there is no spec `xxx"),
        ("x" * 5000 + ".yaml", "there is no file xxx"),
        ("\x00", "there is no spec `\\x00`"),
        ("a\x00.yaml", "there is no file a\\x00.yaml"),
        ("momentum", "`momentum` is a coupling, and not a spec"),
    ],
)
def test_a_spec_that_is_not_there(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        load(name)
    (mistake,) = caught.value.diagnostics
    assert mistake.code == "E501"
    assert message in str(mistake)
    if "vit" in name:
        assert "did you mean" in mistake.help


def test_a_spec_beside_the_wrong_name_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_network.yaml").write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="did you mean `my_network`"):
        load("my_netwrk")


Explain = Callable[..., str]


def test_an_unreadable_folder_is_no_crash(explain: Explain) -> None:
    Path("couplings.yaml").mkdir()
    assert "there is no coupling `couplings`" in explain(
        "archspec: 1\nstages: {trunk: {coupling: couplings}}\n"
    )
