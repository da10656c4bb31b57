"""Functions and programs for exact arithmetic, every form of an update among them."""

from __future__ import annotations

from typing import Any

import torch
from random_programs import LAYERS
from torch import Tensor

from compiler.stage import Stage

INPUTS: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": [5, 4]},
    "features": {"features": [6]},
    "image": {"image": [2, 6, 4]},
}


FUNCTIONS: dict[str, tuple[str, list[Any]]] = {
    "linear": ("tokens", [{"linear": "channels"}]),
    "norm": ("tokens", ["layer_norm"]),
    "mlp": ("tokens", ["layer_norm", {"mlp": 2}]),
    "attention": ("tokens", ["layer_norm", {"attention": {"heads": 2}}]),
    "dropout": ("tokens", ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.4}}]),
    "drop path": ("features", ["layer_norm", {"mlp": 2}, {"drop_path": 0.4}]),
    "pair": ("features", [{"transpose_pair": {"activation": "tanh"}}]),
    "conv": ("image", [{"conv": {}}, "tanh"]),
    "batch norm": ("image", [{"conv": {}}, "batch_norm", "silu"]),
    "group norm": ("image", [{"group_norm": 1}, {"conv": {"kernel": 1}}, {"drop_path": 0.3}]),
}


LEARNED = {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"}


def momentum(F: list[Any], G: list[Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A momentum RevNet, its gamma learned by channel."""
    return {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": F, "G": G or F},
        "constants": {"gamma": LEARNED},
        **keys,
    }


PROGRAMS: dict[str, dict[str, Any]] = {
    "remainders and indices on one stack": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["tanh"]},
        "constants": {"g": LEARNED},
        "update": ["y = g*y + F(x)", "x = 9/10*x + F(y)"],
        "output": "x",
    },
    "all forms": {
        "streams": dict.fromkeys("xyzvw", "input"),
        "functions": {"F": ["tanh"]},
        "constants": {"g": LEARNED, "d": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5}},
        "update": [
            "y = g*y + F(x)",
            "x = -2/3*x + F(y)",
            "z = z/4 - F(x)",
            "v = d*v + 0.3*z",
            "w = w*exp(tanh(F(v))/2) + x",
            "x, y, z, v, w = w, x, y, z, v",
        ],
        "output": "x + w",
    },
    "one gauge, rewritten twice": {
        "streams": {"x": "input", "v": "zeros"},
        "functions": {"F": ["layer_norm", {"linear": "channels"}]},
        "constants": {"g": LEARNED},
        "update": ["v += F(x)", "v = g*v - F(x)", "x += v/2", "v *= 0.97"],
        "output": "x",
    },
    "temporaries": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["tanh"], "G": [{"linear": "channels"}]},
        "constants": {"g": LEARNED},
        "update": ["k := G(y) + 0.3*y", "x = g*x + F(k)*k", "m := F(x)", "y = (1 - g/2)*y - m"],
        "output": "x",
    },
    "squares into channels": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": [{"conv": {}}, "tanh"], "G": [{"conv": {}}]},
        "maps": {"Q": "squeeze", "U": "unsqueeze"},
        "constants": {"g": 0.9},
        "update": [
            "x = g*x + F(y)",
            "x = Q(x)",
            "y = Q(y)",
            "y = -g*y + G(x)",
            "x = U(x)",
            "y = U(y)",
        ],
        "output": "x",
    },
    "bits, remainders and a side input": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": [{"linear": "channels"}, "tanh"], "J": LAYERS["tokens"]["J"]},
        "constants": {"g": LEARNED},
        "update": ["x = x/2 + J(y, t)", "y = g*y + 0.3*t*F(x)", "x = -3/4*x + y"],
        "output": "x",
    },
}


def grads(stage: Stage) -> list[Tensor]:
    """Those of the parameters, zero where there is none."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in stage.parameters()]
    stage.zero_grad()
    return found
