"""Networks as Python files: the same bits without archspec."""

from __future__ import annotations

import ast
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from emitted_file import (
    BLOCKER,
    as_module,
    computed,
    disturb,
    emitted_text,
    inputs,
    network_of,
    side_inputs,
)
from hypothesis import HealthCheck, given, settings
from one_stage import spec as one_spec
from random_programs import programs
from small_networks import spec as small_spec
from torch import Tensor
from zoo_specs import SPECS, reduced

import archspec
from archspec.finding import zoo
from archspec.loading import Loaded, load
from archspec.papers import PAPERS
from archspec.training import Density
from compiler import base_stage, coefficients, engine, exact, information, self_check
from compiler.emission import CannotEmitError, emit
from compiler.emission.file import TAKEN_OVER
from compiler.emission.sources import ENGINE, body
from compiler.resolve import resolve

PROCESSES = 3
"""In each, as many of the shipped specs: starting one takes longer than most specs do."""
CHECK = """
import importlib.util, torch
from emitted_file import computed, network_of
for name in NAMES:
    spec = importlib.util.spec_from_file_location(name, f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    problem = torch.load(f"{name}.pt", weights_only=True)
    network = network_of(module)
    network.load_state_dict(problem["weights"])
    found = computed(network, problem["value"], problem["side"])
    assert found.keys() == problem["found"].keys(), name
    wrong = [n for n, tensor in found.items() if not torch.equal(tensor, problem["found"][n])]
    assert not wrong, (name, wrong)
    print(name, len(found), "tensors are equal")
assert not {"archspec", "compiler", "runners"} & set(sys.modules)
"""
COMPUTED = (Path(__file__).parent / "emitted_file.py").read_text(encoding="utf-8")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def narrowed(name: str) -> Loaded:
    """A reduced spec with a fraction of its channels: of all widths that are written, the same. The
    streams of a density have those of its input."""
    if isinstance(reduced(name).spec.task, Density):
        return reduced(name)
    tree = reduced(name).spec.model_dump(mode="json", exclude_unset=True)
    places = list(widths(tree))
    divisor = min(8, math.gcd(*(layer[key] for layer, key in places)) // 8) if places else 1
    for layer, key in places:
        layer[key] //= max(divisor, 1)
    return load(tree)


def widths(tree: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where numbers of channels stand in a spec's tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        if key in ("out", "width") and isinstance(value, int):
            yield tree, key
        elif isinstance(value, (dict, list)):
            yield from widths(value)


@pytest.mark.parametrize("names", [SPECS[i::PROCESSES] for i in range(PROCESSES)], ids=str)
def test_the_zoo_without_archspec(names: tuple[str, ...], tmp_path: Path) -> None:
    """Every shipped spec in a process that cannot import archspec: the bits of `build`."""
    for name in names:
        loaded = narrowed(name)
        plan = resolve(loaded)
        (tmp_path / f"{name}.py").write_text(emit(plan, loaded.spec), encoding="utf-8")
        torch.manual_seed(0)
        network = archspec.build(loaded)
        disturb(network)
        value = inputs(network, network.plan.input.sizes, batch=2)
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        side = side_inputs(network)
        found = computed(network, value, side)
        problem = {"weights": weights, "value": value, "side": side, "found": found}
        torch.save(problem, tmp_path / f"{name}.pt")
    helper = re.sub(r"^from (archspec|compiler).*$", "", COMPUTED, flags=re.MULTILINE)
    (tmp_path / "emitted_file.py").write_text(helper, encoding="utf-8")
    (tmp_path / "check.py").write_text(f"{BLOCKER}NAMES = {names}{CHECK}", encoding="utf-8")
    done = run(tmp_path, "check.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tensors are equal") == len(names)


@pytest.mark.parametrize("name", ["momrev_vit_digits", "revnet_digits", "vit_digits"])
def test_a_file_checks_itself(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(emitted_text(name), encoding="utf-8")
    runner = f'{BLOCKER}import runpy\nrunpy.run_path("model.py", run_name="__main__")\n'
    (tmp_path / "run.py").write_text(runner, encoding="utf-8")
    done = run(tmp_path, "run.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
    assert ("round trip" in done.stdout) == (name != "vit_digits")


def test_a_wrong_inverse_is_found(tmp_path: Path) -> None:
    text = emitted_text("momrev_vit_digits")
    wrong = text.replace("v1 = (v1 - 0.1 * self.F(x2)) / 0.9", "v1 = (v1 + 0.1 * self.F(x2)) / 0.9")
    assert wrong != text
    (tmp_path / "model.py").write_text(wrong, encoding="utf-8")
    done = run(tmp_path, "model.py")
    assert done.returncode == 1
    assert done.stdout.endswith("WRONG\n")


# Everything that the language has ----------------------------------------------------------------


def assert_same_bits(spec: Any, side: dict[str, Tensor] | None = None, batch: int = 3) -> str:
    """The emitted network has the names and the bits of the built one, and passes its own check."""
    text = emitted_text(spec)
    torch.manual_seed(0)
    network = archspec.build(spec).double()
    disturb(network)
    module = as_module(text)
    other = network_of(module).double()
    other.load_state_dict(network.state_dict())
    value = inputs(network, network.plan.input.sizes, batch)
    network.set_progress(0.25)
    other.set_progress(0.25)
    found, wanted = computed(other, value, side or {}), computed(network, value, side or {})
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
    other.train()
    for stage in other.stages:
        assert module.plain_error(stage, batch) == 0
        error = module.roundtrip_error(stage, batch)
        assert (error is None) == bool(stage.facts.obstacles)
        exact = stage.facts.fraction_bits is not None
        assert error is None or (error == 0 if exact else error < 1e-7)
    return text


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs(program: dict[str, Any]) -> None:
    spec = small_spec(program["stage"], program["input"], side=program["side"])
    (entry,) = program["input"].values()
    generator = torch.Generator().manual_seed(0)
    side = torch.randn(3, *entry, generator=generator, dtype=torch.float64)
    assert_same_bits(spec, dict.fromkeys(program["side"], side))


@pytest.mark.parametrize("share", [False, True])
def test_the_whole_language(share: bool) -> None:
    drop: list[Any] = [] if share else [{"drop_path": "layer/9"}]
    update = [
        "x = B(x)",
        "k := tanh(x)*h",
        "x = (a + b)/2*x + F(y, torch)",
        "y = W(y)",
        "y = -gamma*y + exp(1/2)*G(x, time)*x",
        "x, y = y, x",
        f"x += {'2' if share else 'layer'}*G(y, time) + progress",
    ]
    update[1:1] = ["k := tanh(y)*h", "x += k"]
    del update[3]
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
            "G": ["layer_norm", "modulate", {"mlp": {"ratio": 2, "dropout": 0.2}}, *drop],
            "S": ["layer_norm", {"linear": 8}],
        },
        maps={"B": "actnorm", "W": "invertible_linear"},
        depth=3,
        share=share,
        output="concat(x, chunk(y, 2, 2))",
    )
    generator = torch.Generator().manual_seed(0)
    side = {
        "torch": torch.randn(3, 5, 5, generator=generator, dtype=torch.float64),
        "time": torch.randn(3, 2, generator=generator, dtype=torch.float64),
    }
    sides = {"torch": {"tokens": [5, 5]}, "time": {"features": [2]}}
    text = assert_same_bits(spec | {"side": sides}, side)
    assert ("class TrunkLayer2(nn.Module):" in text) != share  # layer 0 has no `layer*G`


IMAGES: list[Any] = [
    {"conv": {"groups": 2, "bias": False}},
    {"group_norm": 2},
    "softplus",
    {"transpose_pair": {"hidden": 6}},
    {"scale": 0.5},
    "batch_norm",
]
TOKENS: list[Any] = [
    "layer_norm",
    {"transpose_pair": {"activation": "tanh"}},
    {"linear": {"out": 4, "bias": False}},
    "silu",
    {"linear": "channels"},
    {"scale": 0.1},
    {"dropout": 0.2},
]


@pytest.mark.parametrize(
    ("layers", "entry"), [(IMAGES, {"image": [4, 6, 6]}), (TOKENS, {"tokens": [5, 4]})]
)
def test_every_kind_of_layer(layers: list[Any], entry: dict[str, Any]) -> None:
    functions = {"F": layers, "G": layers[:3]}
    stage = {"depth": 2, "coupling": "additive", "transition": ["gelu"], "functions": functions}
    assert_same_bits(small_spec(stage, entry, head=["flatten", {"linear": "classes"}]))


def test_stems_and_heads() -> None:
    stage = {"depth": 2, "coupling": "additive", "functions": {"F": ["layer_norm"], "G": ["relu"]}}
    stem: list[Any] = [{"patch_embed": {"patch": 2, "width": 4}}, "class_token", "position"]
    stem[2] = {"position": "learned"}
    head = [{"pool": "first"}, {"linear": "classes"}]
    assert_same_bits(small_spec(stage, {"image": [3, 4, 4]}, stem=stem, head=head))


def test_squeezes() -> None:
    stage = {
        "depth": 2,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["concat", {"conv": {"out": "channels/2"}}]},
        "maps": {"S": "squeeze", "U": "unsqueeze"},
        "update": ["x = S(x)", "y = S(y)", "x += F(y, y)", "x = U(x)", "y = U(y)"],
        "output": "x + y",
    }
    assert_same_bits(small_spec(stage, {"image": [2, 4, 4]}))


# The text ----------------------------------------------------------------------------------------


def test_the_layer_reads_like_the_paper() -> None:
    text = emitted_text("momrev_vit_digits")
    forward = """        v1 = 0.9 * v1 + 0.1 * self.F(x2)
        x1 = x1 + v1
        v2 = 0.9 * v2 + 0.1 * self.G(x1)
        x2 = x2 + v2
"""
    inverse = """        x2 = x2 - v2
        v2 = (v2 - 0.1 * self.G(x1)) / 0.9
        x1 = x1 - v1
        v1 = (v1 - 0.1 * self.F(x2)) / 0.9
"""
    assert forward in text
    assert inverse in text
    assert "v1 = gamma*v1 + (1 - gamma)*F(x2)    v1 = (v1 - (1 - gamma)*F(x2))/gamma" in text
    assert "Mangalam et al. 2022, Reversible Vision Transformers" in text
    assert text.index("class TrunkLayer") < text.index("class Handle")
    assert "class Conv" not in text  # only what is used


@pytest.mark.parametrize("name", ["realnvp_digits", "glow_cifar10"])
def test_a_density_samples_and_goes_back(name: str) -> None:
    """Its prior, and its inverse through all stages, are written out too."""
    loaded = reduced(name)
    network = archspec.build(loaded)
    disturb(network)
    written = network_of(as_module(emit(resolve(loaded), loaded.spec)))
    written.load_state_dict(network.state_dict())
    values = 0.3 * inputs(network, network.plan.input.sizes)
    found = []
    for flow in (network.eval(), written.eval()):
        drawn = flow.sample(2, 0.7, torch.Generator().manual_seed(1))
        encoded = flow.encode(values)
        assert torch.allclose(flow.decode(encoded.latents), values, atol=1e-4)
        flow.initialise(values)
        found.append([drawn, *encoded.latents, encoded.log_determinant, flow(values)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SPECS)
def test_imports_are_torch_and_the_standard_library(name: str) -> None:
    modules = set()
    for node in ast.walk(ast.parse(emitted_text(name))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).partition(".")[0])
    assert "torch" in modules
    assert modules - {"torch"} <= sys.stdlib_module_names


def test_the_engine_is_taken_over_word_for_word() -> None:
    text = re.sub(r"\n+", "\n", emitted_text("realnvp_digits"))
    assert {*ENGINE, exact, information, coefficients, base_stage, self_check} <= set(TAKEN_OVER)
    for module in TAKEN_OVER:
        assert re.sub(r"\n+", "\n", body(module)).strip() in text


def test_the_whole_engine_is_taken_over() -> None:
    package = Path(str(engine.__file__)).parent
    parts = {path.stem for path in package.glob("*.py")} - {"__init__"}
    taken = {module.__name__ for module in ENGINE}
    assert {f"compiler.engine.{part}" for part in parts} <= taken
    assert engine.__doc__ is not None
    assert f"# {engine.__doc__.splitlines()[0]}" in emitted_text("momrev_vit_digits")


def test_modules_come_after_those_that_they_import() -> None:
    """What a class is derived from, and a decorator, stand before it in the one file."""
    seen: set[str] = set()
    for module in TAKEN_OVER:
        tree = ast.parse(inspect.getsource(module))
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        taken = {other.__name__ for other in TAKEN_OVER}
        assert imported & taken <= seen | {module.__name__}, module.__name__
        seen.add(module.__name__)


def test_a_penalty_that_is_left_out_is_told() -> None:
    doc = ast.get_docstring(ast.parse(emitted_text("hamiltonian74_cifar10"))) or ""
    words = " ".join(doc.split())
    assert "The penalty by `smoothness` of stages `fine`, `middle`, `coarse`" in words
    assert "`smoothness`" not in emitted_text("momrev_vit_digits").partition("from __future__")[0]


def test_texts_of_strangers_stay_texts() -> None:
    """Nothing in a spec becomes code but what the compiler made of it."""
    evil = '"""\nraise SystemExit(7)\n"""\\'
    spec = one_spec("x += F(y); y += x") | {"summary": evil, "cite": [evil], "name": "os"}
    module = as_module(emitted_text(spec))
    assert "raise SystemExit(7)" in str(module.__doc__)
    assert network_of(module)(torch.randn(2, 5, 8)).shape == (2, 3)


def test_names_do_not_collide() -> None:
    """Stages and streams may be called as the file's own classes and modules are."""
    stage = {
        "depth": 2,
        "streams": {"torch": "input", "self": "input", "nn": "input"},
        "functions": {"Layer": ["tanh"], "Call": [{"linear": "channels"}]},
        "update": ["torch += Layer(self)", "self += Call(torch)", "nn += torch"],
        "output": "torch + self + nn",
    }
    spec = small_spec(stage) | {"name": "base"}
    spec["stages"] = {"base": stage, "call": stage, "base_": stage}
    assert_same_bits(spec)


def test_modules_of_the_users_own_cannot_be_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("from torch import nn\nclass Own(nn.Tanh): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = one_spec("x += F(y); y += x", functions={"F": [{"module": "stranger.Own"}]})
    loaded = load(spec, allow_modules=["stranger"])
    with pytest.raises(CannotEmitError, match=r"stranger\.Own is a module of your own"):
        emit(resolve(loaded), loaded.spec)


def test_every_citation_is_known() -> None:
    cited = set()
    for path in (*zoo().glob("*.yaml"), *zoo().glob("couplings/*.yaml")):
        for line in re.findall(r"^cite: \[(.*)\]", path.read_text(encoding="utf-8"), re.MULTILINE):
            cited |= {key.strip() for key in line.split(",")}
    assert cited <= set(PAPERS)
