"""Emitted files of specs whose names are those that the file itself uses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from emitted_file import as_module, emitted_text, network_of
from one_stage import spec as one_spec
from small_networks import spec as small_spec
from test_emission import assert_same_bits

from compiler.emission import is_as_emitted


def of_streams(*names: str, **keys: Any) -> dict[str, Any]:
    first, second = names
    stage = {
        "depth": 2,
        "streams": {first: "input*2", second: "S(input)"},
        "functions": {"F": ["tanh"], "S": [{"linear": "channels"}]},
        "update": [f"{first} += F({second})", f"{second} += F({first})"],
        "output": f"{first} - {second}",
        **keys,
    }
    return small_spec(stage)


@pytest.mark.parametrize(
    "names",
    [("x_S_0", "x"), ("torch", "torch_"), ("self", "self_"), ("invoke", "x"), ("at", "nn"),
     ("input_", "range"), ("tuple", "dict"), ("layer_", "math"), ("copy", "value")],
)  # fmt: skip
def test_streams_of_any_name(names: tuple[str, str]) -> None:
    assert_same_bits(of_streams(*names))


def test_streams_may_bear_every_name_in_the_file() -> None:
    """In one go, sixteen at a time: whatever identifier an emitted file has."""
    text = emitted_text(of_streams("x", "y"))
    words = identifiers(text)
    for start in range(0, len(words) - 16, 16):
        names = words[start : start + 16]
        module = as_module(emitted_text(of_many_streams(names)))
        network = network_of(module).double()
        assert module.self_check(network, 1), names


def identifiers(text: str) -> list[str]:
    """All in a text that streams may bear."""
    words = sorted(set(re.findall(r"\b[a-z][A-Za-z0-9_]{0,38}\b", text)))
    return [w for w in words if not _reserved(w)]


def of_many_streams(names: list[str], **keys: Any) -> dict[str, Any]:
    """A spec of streams that read one another in a ring."""
    update = [f"{a} += F({b})" for a, b in zip(names, [*names[1:], names[0]], strict=True)]
    stage = {
        "depth": 1,
        "streams": dict.fromkeys(names, "input"),
        "functions": {"F": [{"linear": "channels"}, "tanh"]},
        "update": update,
        "output": " + ".join(names),
        **keys,
    }
    return small_spec(stage)


def _reserved(word: str) -> bool:
    from keyword import iskeyword

    from archspec.expressions import RESERVED

    return iskeyword(word) or word in RESERVED


def test_arguments_that_vanish_in_a_layer() -> None:
    """`layer*y` is a number at layer 0, and no stream."""
    text = assert_same_bits(one_spec("x += F(layer*y); y += G(x)", depth=3))
    assert "torch.full_like" in text


def test_a_lost_gradient_is_found() -> None:
    module = as_module(emitted_text("momrev_vit_digits"))
    zeros = torch.zeros(3)
    assert module._worst_gradient([zeros + 1, None], [zeros + 1, zeros + 2]) > 0.1
    assert module._worst_gradient([zeros, zeros + float("nan")], [zeros, zeros + 1]) != 0
    assert not module._worst_gradient([zeros + float("nan")], [zeros + 1]) <= 1e-8


def test_a_file_that_was_edited_is_told_from_one_as_written() -> None:
    text = emitted_text("momrev_vit_digits")
    assert is_as_emitted(text)
    assert not is_as_emitted(text.replace("0.9 * v1", "0.8 * v1"))
    assert not is_as_emitted(text + "\n# mine\n")
    assert not is_as_emitted("mine = 1\n")
