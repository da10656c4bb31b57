"""How a schedule of checkpoints is set: in Python, in a spec, in an emitted file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint_passes import DROPPING, Schedule, calls_of
from emitted_file import as_module, computed, disturb, emitted_text, inputs, network_of
from exact_stages import SMALL
from small_networks import BRANCH, additive, network
from small_networks import spec as small_spec

import archspec
from archspec.dumping import dump
from archspec.loading import load
from compiler.schedules import Checkpoints, evaluations


def test_settings_in_python() -> None:
    model = network({**additive(), "backward": {"checkpoint": {"slots": 2}}})
    stage = model.stages[0]
    assert (stage.backward, stage.checkpoints) == ("checkpoint", Checkpoints(slots=2))
    model.set_backward("checkpoint", every=4)
    stage.backward = "store"
    stage.backward = "checkpoint"
    assert stage.checkpoints == Checkpoints(every=4)
    assert "backward='checkpoint' (every: 4)" in repr(stage)
    model.set_backward("checkpoint")  # as the spec has it
    assert stage.checkpoints == Checkpoints(slots=2)
    for keys in ({"every": 2, "slots": 2}, {"slots": 0}, {"every": True}):
        with pytest.raises(ValueError, match=r"`every`|`slots`"):
            model.set_backward("checkpoint", **keys)
    with pytest.raises(ValueError, match="go with 'checkpoint', found 'reversible'"):
        stage.set_backward("reversible", slots=2)
    with pytest.raises(ValueError, match="backward is one of reversible, checkpoint, store"):
        model.set_backward("slots")
    assert stage.checkpoints == Checkpoints(slots=2)


@pytest.mark.parametrize(
    "backward",
    [
        "checkpoint",
        {"checkpoint": {"every": 3}},
        {"checkpoint": {"slots": 3}},
        {"reversible": {"from": 0.25}},
        {"reversible": {}},
    ],
    ids=str,
)
def test_a_resolved_spec_loads_again(backward: Any) -> None:
    constants = {"gamma": "0.5 + 0.4*progress"}
    functions = {"F": BRANCH, "G": BRANCH}
    stage = {"depth": 3, "coupling": "momentum_pair", "functions": functions}
    loaded = load(small_spec({**stage, "constants": constants, "backward": backward}))
    from_text = archspec.build(load(_dumped(loaded.tree)))
    from_spec = archspec.build(loaded.spec)
    built = archspec.build(loaded)
    for other in (from_text, from_spec):
        assert other.stages[0].backward == built.stages[0].backward
        assert other.stages[0].facts == built.stages[0].facts


def _dumped(tree: Any) -> Any:
    from archspec.tree import read

    return read(dump(tree), "<dumped>").plain()


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"checkpoint": {"every": 4}}, {"checkpoint": {"slots": 2}}, Checkpoints(slots=2)),
        ({"checkpoint": {"every": 4}}, {"checkpoint": {"every": 2}}, Checkpoints(every=2)),
        ({"checkpoint": {"every": 4}}, {"reversible": {}}, Checkpoints()),
        ("store", {"checkpoint": {"slots": 2}}, Checkpoints(slots=2)),
        ({"checkpoint": {"every": 4}}, "checkpoint", Checkpoints()),
    ],
)
def test_another_schedule_replaces_the_inherited_one(old: Any, new: Any, found: Any) -> None:
    text = str(new).replace("'", "")
    model = archspec.build(
        load(small_spec({**additive(), "backward": old}), [f"stages.trunk.backward={text}"])
    )
    assert model.stages[0].checkpoints == found


# In an emitted file -------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [{"every": 2}, {"slots": 2}], ids=str)
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_emitted_files_carry_the_schedule(schedule: Schedule, arithmetic: str) -> None:
    functions = {"F": DROPPING, "G": BRANCH}
    stage = {"depth": 5, "coupling": "momentum_pair", "functions": functions}
    spec = small_spec(
        {**stage, "arithmetic": arithmetic, "backward": {"checkpoint": schedule}}, **SMALL
    )
    model = archspec.build(spec)
    disturb(model)
    module = as_module(emitted_text(spec))
    other = network_of(module)
    other.load_state_dict(model.state_dict())
    assert str(other.stages[0].checkpoints) == str(Checkpoints(**schedule))
    assert other.stages[0].backward == "checkpoint"
    value = inputs(model, model.input)
    found, wanted = computed(other, value, {}), computed(model, value, {})
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []
    assert module.self_check(network_of(module))
    counts = calls_of(other.train().set_backward("checkpoint"))
    other(value).sum().backward()
    total = evaluations(5, schedule["slots"]) if "slots" in schedule else 10
    assert sum(counts.values()) == total
