"""Parameters, MACs and kept bytes."""

from __future__ import annotations

import pytest
import torch
from one_stage import spec

import archspec
from archspec.loading import load
from compiler.counting import costs, kept_bytes, kept_bytes_per_input, parameters
from compiler.memory import LiveBytes
from compiler.network import build
from compiler.resolve import resolve
from compiler.summary import summarise


def test_macs_of_a_vision_transformer_by_formula() -> None:
    plan = resolve(load("rev_vit_digits"))
    tokens, width, depth, ratio = 16, 64, 6, 2
    linear = tokens * width * width * (4 + 2 * ratio)
    attention = 2 * tokens * tokens * width
    found = costs(plan)
    assert found["stages.trunk"].macs == depth * (linear + attention)
    assert found["stages.trunk"].norms == depth * 2 * 5 * tokens * width
    assert found["stem"].macs == tokens * 4 * width
    assert found["head"].macs == 2 * width * 10


def test_parameters_of_a_vision_transformer_by_formula() -> None:
    model = archspec.build("momrev_vit_digits")
    width, count, depth, ratio = 64, 16, 6, 2
    layer = (4 + 2 * ratio) * width**2 + (4 + ratio + 1 + 4) * width
    stem = 4 * width + width + count * width
    head = 2 * 2 * width + (2 * width + 1) * 10
    assert parameters(model) == stem + depth * layer + head


@pytest.mark.parametrize("backward", ["store", "checkpoint", "reversible"])
@pytest.mark.parametrize("name", ["momrev_vit_digits", "revnet_digits"])
def test_bytes_counted_on_fake_tensors_are_those_of_a_real_step(name: str, backward: str) -> None:
    batch = 4
    model = archspec.build(name).set_backward(backward).train()
    images = torch.randn(batch, *model.plan.input.sizes)
    with LiveBytes() as live:
        live.ignore([*model.parameters(), *model.buffers(), images])
        logits = model(images)
        real = live.now
    del logits
    assert kept_bytes(model.plan, backward, batch) == real


def test_counting_leaves_the_generator_alone() -> None:
    plan = resolve(load("momrev_vit_digits"))
    before = torch.get_rng_state()
    costs(plan)
    kept_bytes(plan)
    assert torch.equal(before, torch.get_rng_state())


MODULES = """
from torch import nn


class Asks(nn.Module):
    def forward(self, x):
        return x * (1 if x.sum().item() > 0 else 2)
"""


def test_modules_that_need_values_leave_costs_unknown(tmp_path, monkeypatch) -> None:
    (tmp_path / "asking.py").write_text(MODULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    one = spec("x += F(y); y += F(x)", functions={"F": [{"module": "asking.Asks"}]})
    plan = resolve(load(one, allow_modules=["asking"]))
    found = costs(plan)
    assert found["stages.trunk"].macs is None
    assert found["head"].macs == 16 * 3
    assert kept_bytes_per_input(plan) is None
    summary = summarise(build(plan), None)
    assert summary.macs is None
    assert summary.kept_bytes_stored is None
    assert summary.stages[0].parameters == 0
