"""Emitted files of exact arithmetic: the same bits without archspec, both ways."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from coupling_equations import COUPLINGS, FUNCTIONS, NOT_INVERTIBLE
from emitted_file import BLOCKER, as_module, computed, disturb, emitted_text, inputs, network_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_stage import spec as one_spec
from random_programs import programs
from small_networks import spec as small_spec
from test_emission import COMPUTED, assert_same_bits, run
from test_emission_names import identifiers, of_many_streams, of_streams
from torch import Tensor

import archspec

Spec = dict[str, Any]
EXACT: Spec = {"arithmetic": "exact"}
BRANCH: list[Any] = ["layer_norm", {"linear": "channels"}, "tanh", {"scale": 0.2}]


# Without archspec --------------------------------------------------------------------------------


def coupled(coupling: str, constants: Any = None, **keys: Any) -> Spec:
    """A named coupling on tokens."""
    strategy = {"backward": "checkpoint"} if coupling in NOT_INVERTIBLE else {}
    return small_spec(
        {
            "depth": 3,
            "coupling": coupling,
            "functions": dict.fromkeys(FUNCTIONS.get(coupling, "F"), BRANCH),
            "constants": constants or {},
            **strategy,
            **EXACT,
            **keys,
        }
    )


LEARNED = {"learn": 0.9, "within": [0.5, 0.99]}
BY_CHANNEL = {"learn": -0.8, "within": [-0.99, -0.6], "per": "channel"}
GAMMAS: dict[str, Any] = {
    "9/10": 0.9,
    "19/20": 0.95,
    "0.83": -0.83,
    "half": 0.5,
    "sixteenth": "-1/16",
    "learned": LEARNED,
    "by channel": BY_CHANNEL,
    "drawn": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5},
    "drawn of any size": {"draw": [0.9, -0.4, 1.0], "per": "sample", "evaluate": 0.8},
    "by layer": "0.9 - 0.4*layer/depth",
    "rationals": "(layer + 1)/(layer + 2)",
    "rationals and others": "(layer + 15)/(layer + 16)",
    "progress": "0.6 + 0.35*progress",
}
MAPPED: Spec = {
    "depth": 2,
    "streams": {"x": "input", "y": "input"},
    "functions": {"F": [{"conv": {}}, "tanh"], "G": [{"conv": {}}, "batch_norm", "silu"]},
    "maps": {"N": "actnorm", "W": "invertible_linear", "Q": "squeeze", "U": "unsqueeze"},
    "update": [
        *("x = N(x)", "x = Q(x)", "y = Q(y)", "x += F(y)"),
        *("x = W(x)", "y = y/2 - G(x)", "x = U(x)", "y = U(y)"),
    ],
    "output": "x",
    **EXACT,
}
PROGRAMS: dict[str, Spec] = {
    "maps of images": small_spec(MAPPED, {"image": [2, 4, 4]}),
    "maps, shared": small_spec({**MAPPED, "share": True}, {"image": [2, 4, 4]}),
    "all forms": one_spec(
        [
            "y = g*y + F(x)",
            "x = -2/3*x + F(y)",
            "z = z/4 - F(x)",
            "v = d*v + 0.3*z",
            "w = w*exp(tanh(F(v))/2) + x",
            "x, y, z, v, w = w, x, y, z, v",
        ],
        {"g": LEARNED, "d": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5}},
        streams="x y z v w",
        share=True,
        **EXACT,
    ),
    "forms by layer": one_spec(
        ["x = s*x + F(y)", "y = (layer - 3)/4*y + 0.1*F(x)", "y -= layer*x", "x += layer"],
        {"s": "(layer + 1)/2"},
        depth=3,
        **EXACT,
    ),
    "scales that vanish": one_spec(
        ["x = layer*x + F(y)", "y = (1 - layer)*y + 0.1*F(x)"], backward="checkpoint", **EXACT
    ),
    "updates of no exact form": one_spec(
        ["x = tanh(x) + F(y)", "y = y*F(y)", "y = 0.9*y + G(x)"], backward="store", **EXACT
    ),
    "temporaries": one_spec(
        ["k := G(y) + 0.3*y", "x = g*x + F(k)*k", "m := F(x)", "y = (1 - g/2)*y - m", "y += 1/3"],
        {"g": BY_CHANNEL},
        **EXACT,
    ),
    "another grid": coupled("momentum_pair", {"gamma": 0.9}, arithmetic={"exact": 9}),
    "ordinary arithmetic in parts": coupled("additive", arithmetic="float", store_every=2, depth=5),
}


@functools.cache
def text_of(group: str, name: str) -> str:
    return emitted_text(GROUPS[group][name])


GROUPS: dict[str, dict[str, Spec]] = {
    "couplings": {coupling: coupled(coupling) for coupling in COUPLINGS},
    "gammas": {
        f"{coupling}, {name}": coupled(coupling, {"gamma": gamma})
        for name, gamma in GAMMAS.items()
        for coupling in ("momentum", "momentum_pair")
    },
    "programs": PROGRAMS,
}
CHECK = """
import importlib.util, torch
from emitted_file import computed, network_of

wrong = {}
problems = torch.load("problems.pt", weights_only=True)
for name, problem in problems.items():
    spec = importlib.util.spec_from_file_location(problem["file"], problem["file"] + ".py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[problem["file"]] = module
    spec.loader.exec_module(module)
    network = network_of(module)
    network.load_state_dict(problem["weights"])
    found = computed(network, problem["value"], {})
    assert found.keys() == problem["found"].keys(), name
    differing = [n for n, t in found.items() if not torch.equal(t, problem["found"][n])]
    network.double()
    for stage in network.stages:
        differing += [] if module.plain_error(stage, 2) == 0 else ["statements"]
        exact = stage.facts.fraction_bits is not None
        error = module.roundtrip_error(stage, 2)
        differing += [] if error is None or error <= (0 if exact else 1e-3) else ["round trip"]
    if differing:
        wrong[name] = differing
assert not wrong, wrong
assert not {"archspec", "compiler", "runners"} & set(sys.modules)
print(len(problems), "files are right")
"""


@pytest.mark.parametrize("group", GROUPS)
def test_without_archspec(group: str, tmp_path: Path) -> None:
    """Each spec of a group in a process that cannot import archspec: outputs, gradients by every
    strategy, what is kept, and inverses are the bits of `build`."""
    problems = {}
    for number, (name, spec) in enumerate(GROUPS[group].items()):
        torch.manual_seed(0)
        network = archspec.build(spec)
        disturb(network)
        value = inputs(network, network.plan.input.sizes)
        weights = {n: tensor.clone() for n, tensor in network.state_dict().items()}
        found = computed(network, value, {})
        problems[name] = {
            "file": f"model_{number}", "weights": weights, "value": value, "found": found
        }  # fmt: skip
        (tmp_path / f"model_{number}.py").write_text(text_of(group, name), encoding="utf-8")
    torch.save(problems, tmp_path / "problems.pt")
    helper = re.sub(r"^from (archspec|compiler).*$", "", COMPUTED, flags=re.MULTILINE)
    (tmp_path / "emitted_file.py").write_text(helper, encoding="utf-8")
    (tmp_path / "check.py").write_text(BLOCKER + CHECK, encoding="utf-8")
    done = run(tmp_path, "check.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(problems)} files are right\n"


def test_all_forms_are_among_them() -> None:
    texts = "".join(text_of(group, name) for group, specs in GROUPS.items() for name in specs)
    for form in ("Unit()", "Parity(1)", "Parity(4)", "Remainder(9, 10)", "Monotone(", "Gauge("):
        assert f" {form}" in texts
    assert "Remainder(self.c1, self.c2)" in texts  # another in each layer


@pytest.mark.parametrize("name", ["momentum_pair", "bdia", "affine"])
def test_a_file_checks_itself_exactly(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(emitted_text(coupled(name)), encoding="utf-8")
    runner = f'{BLOCKER}import runpy\nrunpy.run_path("model.py", run_name="__main__")\n'
    (tmp_path / "run.py").write_text(runner, encoding="utf-8")
    done = run(tmp_path, "run.py")
    assert done.returncode == 0, done.stderr
    *found, last = done.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in found] == ["0"] * 4
    assert last == "right"


# Everything that the language has ----------------------------------------------------------------


def side_inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(), st.sampled_from([8, 12, 14]))
def test_random_programs(program: dict[str, Any], bits: int) -> None:
    stage = {**program["stage"], "arithmetic": {"exact": bits}}
    spec = small_spec(stage, program["input"], side=program["side"])
    (entry,) = program["input"].values()
    (side,) = side_inputs(tuple(entry))
    try:
        assert_same_bits(spec, dict.fromkeys(program["side"], side))
    except RuntimeError as error:
        if type(error).__name__ != "RangeError":  # the emitted file has a class of its own
            raise


@pytest.mark.parametrize("share", [False, True])
def test_the_whole_language(share: bool) -> None:
    update = [
        "x = B(x)",
        "k := tanh(y)*h",
        "x += k",
        "x = (a + b)/2*x + F(y, grid)",
        "y = -gamma*y + exp(1/2)*G(x, kept)",
        "y = 3*y/5 + G(x, kept) * F(x, grid) - 2*G(x, kept)",
        "x, y = y, x",
        f"x += {'2' if share else 'layer'}*G(y, kept) + progress",
    ]
    spec = one_spec(
        update,
        {
            "h": "0.1*(layer + 1)/depth",
            "gamma": {"draw": [0.5, 0.7], "evaluate": 0.9},
            "a": {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"},
            "b": "0.7 + progress/3",
        },
        streams={"x": "-(input + S(input))/2", "y": "0*input + 3"},
        functions={
            "F": ["layer_norm", {"attention": {"heads": 2, "masked": True, "dropout": 0.1}}],
            "G": ["layer_norm", "modulate", {"mlp": {"ratio": 2, "dropout": 0.2}}],
            "S": ["layer_norm", {"linear": 8}],
        },
        maps={"B": "actnorm"},
        depth=3,
        share=share,
        **EXACT,
    )
    mask, time = side_inputs((5, 5), (2,))
    sides = {"grid": {"tokens": [5, 5]}, "kept": {"features": [2]}}
    text = assert_same_bits(spec | {"side": sides}, {"grid": mask, "kept": time})
    assert ("class TrunkLayer2(nn.Module):" in text) != share  # layer 0 has no `layer*G`


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("kept", "grid"), ("kept_", "_kept"[1:]), ("on_grid", "torch"), ("information", "at"),
     ("self", "invoke"), ("fused", "rounded")],
)  # fmt: skip
def test_streams_of_any_name(names: tuple[str, str]) -> None:
    spec = of_streams(*names, **EXACT)
    first, second = names
    spec["stages"]["trunk"]["update"].append(f"{first} = 0.9*{first} + {second}")
    assert_same_bits(spec)


def test_coefficients_of_any_name() -> None:
    """Learned, drawn, and computed ones."""
    update = ["x = kept*x + F(y)", "y = grid*y + on_grid*G(x)"]
    constants = {
        "kept": LEARNED,
        "grid": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.5},
        "on_grid": "1 - kept/2",
    }
    assert_same_bits(one_spec(update, constants, **EXACT))


def test_functions_of_any_name() -> None:
    functions = dict.fromkeys(["Grid", "Unit", "Information", "Exact"], BRANCH)
    update = ["x = 0.9*x + Grid(y) - Exact(y)", "y += Unit(x)*Information(x)"]
    spec = one_spec(update, functions=functions, maps={"Remainder": "actnorm"}, **EXACT)
    spec["stages"]["trunk"]["update"].append("x = Remainder(x)")
    assert_same_bits(spec | {"name": "information"})


def test_streams_may_bear_every_name_in_the_file() -> None:
    words = identifiers(emitted_text(coupled("momentum_pair")))
    for start in range(0, len(words) - 16, 16):
        names = words[start : start + 16]
        module = as_module(emitted_text(of_many_streams(names, **EXACT)))
        assert module.self_check(network_of(module), 1), names


# The text ----------------------------------------------------------------------------------------


def test_the_layer_reads_like_the_arithmetic() -> None:
    text = emitted_text(coupled("momentum_pair"))
    forward = """        grid = Grid(14)
        v1 = Remainder(9, 10).advance(v1, 0.9, 0.1 * self.F(x2), grid, kept)
        x1 = Unit().advance(x1, 1.0, v1, grid, kept)
        v2 = Remainder(9, 10).advance(v2, 0.9, 0.1 * self.G(x1), grid, kept)
        x2 = Unit().advance(x2, 1.0, v2, grid, kept)
        return x1, x2, v1, v2
"""
    inverse = """        grid = Grid(14)
        x2 = Unit().retreat(x2, 1.0, v2, grid, kept)
        v2 = Remainder(9, 10).retreat(v2, 0.9, 0.1 * self.G(x1), grid, kept)
        x1 = Unit().retreat(x1, 1.0, v1, grid, kept)
        v1 = Remainder(9, 10).retreat(v1, 0.9, 0.1 * self.F(x2), grid, kept)
        return x1, x2, v1, v2
"""
    assert forward in text
    assert inverse in text
    assert "v1 = gamma*v1 + (1 - gamma)*F(x2)    v1 = (v1 - (1 - gamma)*F(x2))/gamma" in text
    assert "`Information()`" in text
    assert "multiples of 2^-14" in text
    ordinary = emitted_text(coupled("additive", arithmetic="float"))
    assert "In exact arithmetic" not in ordinary
    layers = ordinary[ordinary.index("class TrunkLayer") : ordinary.index("# What functions")]
    assert not re.search("multiples of|advance|kept|grid", layers)


def test_nothing_is_defined_twice() -> None:
    """Modules share one file."""
    defined = []
    for node in ast.parse(text_of("programs", "maps of images")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            defined.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined += [ast.unparse(target) for target in targets]
    assert sorted(set(defined)) == sorted(defined)


WRONG = {
    "the wrong digits": ("Remainder(9, 10).retreat(v1,", "Remainder(8, 10).retreat(v1,"),
    "another change": ("retreat(v1, 0.9, 0.1 *", "retreat(v1, 0.9, 0.1001 *"),
    "another order": ("Remainder(9, 10).advance(v1,", "Unit().advance(v1,"),
    "an engine that rounds": ("rest=lambda at: 0.1 *", "rest=lambda at: 0.1001 *"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_statement_is_found(mistake: str) -> None:
    """However small: there is no tolerance."""
    text = emitted_text(coupled("momentum_pair"))
    right, wrong = WRONG[mistake]
    module = as_module(text.replace(right, wrong, 1))
    assert text.count(right)
    torch.manual_seed(0)
    assert not module.self_check(network_of(module))
