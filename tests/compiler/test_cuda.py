"""The engine on a GPU: `pytest -n 0 tests/compiler/test_cuda.py` on a machine with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from matrix_rows import ROWS
from matrix_table import Row
from plain_networks import Case, Wanted, assert_alike, gradients, pair, trunk, value
from small_networks import STRATEGIES, additive, network
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import archspec

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

REPLAYED = ("checkpoint", "reversible")
COUPLINGS = ("additive", "momentum_pair", "affine", "bdia")
OF_THE_CPU = ("autocast", "float16", "threads")
"""Rows, by a part of their names, that have to do with the CPU's autocast or with its threads."""
CELLS = [
    pytest.param(row, Case(coupling, strategy), id=f"{row.name}-{coupling}-{strategy}")
    for row in ROWS
    if not any(part in row.name for part in OF_THE_CPU)
    for coupling in COUPLINGS
    for strategy in STRATEGIES
    if strategy in row.only
]


@pytest.fixture
def on_gpu() -> Any:
    """Make every tensor on the GPU, where nothing else is said."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(("row", "case"), CELLS)
def test_matrix(row: Row, case: Case, on_gpu: None) -> None:
    refusal = row.refused.get(case.strategy)
    if refusal is None:
        row.check(case)
    else:
        with pytest.raises(refusal.kind, match=refusal.message):
            row.check(case)


# Random numbers ----------------------------------------------------------------------------------

DROPOUT = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}, {"drop_path": 0.3}]


def on_both(case: Case, run: Callable[[Any], Wanted], bound: float = 1e-12, **keys: Any) -> None:
    """`run` gives the same with the compiled network as with its plain twin, on the GPU."""
    results = []
    for model in pair(case, **keys):
        torch.manual_seed(5)
        results.append(run(model.cuda()))
    assert_alike(results[1], results[0], bound)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_numbers_of_both_generators(strategy: str) -> None:
    def run(model: Any) -> Wanted:
        loss = model(value().cuda()).square().sum()
        after = torch.rand(3, device="cuda"), torch.rand(3)
        loss.backward()
        return [*gradients(model), *after, torch.rand(3, device="cuda"), torch.rand(3)]

    on_both(Case("additive", strategy), run, functions={"F": DROPOUT, "G": DROPOUT})


class DrawingOnBoth(nn.Module):
    """Draws from the CPU's generator and from the GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.linear(x).tanh(), 0.4)
        return hidden * (0.5 + float(torch.rand(())))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_function_that_draws_on_both(strategy: str) -> None:
    def run(model: Any) -> Wanted:
        torch.manual_seed(1)
        for layer in trunk(model).layers:
            layer.F = DrawingOnBoth().double().cuda()
        torch.manual_seed(2)
        backward_on_gpu(model(value().cuda()))
        return [*gradients(model), torch.rand(2), torch.rand(2, device="cuda")]

    on_both(Case("additive", strategy), run)


def backward_on_gpu(out: Tensor) -> None:
    (out.square().sum() + out.sin().sum()).backward()


# Attention kernels -------------------------------------------------------------------------------

KERNELS = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("strategy", REPLAYED)
def test_attention_kernels(strategy: str, kernel: SDPBackend, rate: float) -> None:
    """Their dropout takes its seed from the generator's state, inside the kernel."""
    layers = ["layer_norm", {"attention": {"heads": 2, "dropout": rate}}]
    results = []
    for backward_strategy in ("store", strategy):
        stage = additive(layers, layers, backward=backward_strategy)
        model = network(stage, torch.float32, input={"tokens": [32, 64]}).cuda()
        torch.manual_seed(3)
        inputs = torch.randn(4, 32, 64, device="cuda")
        with sdpa_kernel(kernel):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                out = model(inputs)
            out.float().square().sum().backward()
        results.append(gradients(model))
    assert_alike(results[1], results[0], 5e-2)


def test_another_kernel_in_the_replay_is_an_error() -> None:
    layers = ["layer_norm", {"attention": {"heads": 2}}]
    model = network(additive(layers, layers), torch.float32, input={"tokens": [32, 64]}).cuda()
    with sdpa_kernel(SDPBackend.MATH):
        out = model(torch.randn(4, 32, 64, device="cuda"))
    with (
        sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
        pytest.raises(RuntimeError, match="did not do the same in the replay"),
    ):
        out.square().sum().backward()
    assert not archspec.is_replaying()


# Precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_with_a_scaler(strategy: str, dtype: torch.dtype) -> None:
    def run(model: Any) -> Wanted:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cuda", init_scale=16.0)
        with torch.autocast("cuda", dtype=dtype):
            loss = model(value(dtype=torch.float32).cuda()).float().square().sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = [g.clone() for g in gradients(model) if g is not None]
        scaler.step(optimizer)
        scaler.update()
        return [*found, *(parameter.detach() for parameter in model.parameters())]

    on_both(Case("momentum_pair", strategy), run, 4e-2, dtype=torch.float32)


# CUDA graphs -------------------------------------------------------------------------------------


def captured(strategy: str) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of a training step replayed from a CUDA graph, and those of an eager one."""
    stage = additive(backward=strategy)
    model = network(stage, torch.float32).cuda()
    inputs = torch.randn(4, 5, 6, device="cuda")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(inputs).square().sum().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    wanted = [g.clone() for g in gradients(model) if g is not None]
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(inputs * 1).square().sum().backward()  # a graph that is refused is not empty
    graph.replay()
    torch.cuda.synchronize()
    return [g.clone() for g in gradients(model) if g is not None], wanted


def test_a_cuda_graph_of_stored_activations() -> None:
    found, wanted = captured("store")
    assert_alike(list(found), list(wanted), 1e-5)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_a_cuda_graph_of_replays_is_refused(strategy: str) -> None:
    with pytest.raises(RuntimeError, match="CUDA graph"):
        captured(strategy)
    # The next eager step is right.
    results = []
    for backward_strategy in ("store", strategy):
        model = network(additive(backward=backward_strategy)).cuda()
        backward_on_gpu(model(torch.ones(4, 5, 6, device="cuda", dtype=torch.float64)))
        results.append(gradients(model))
    assert_alike(results[1], results[0])


# Memory ------------------------------------------------------------------------------------------


def peak(strategy: str, depth: int) -> int:
    """The most bytes that a step takes over what the model and its gradients take."""
    layers = ["layer_norm", {"mlp": 4}]
    stage = {**additive(layers, layers, backward=strategy), "depth": depth}
    model = network(stage, torch.float32, input={"tokens": [128, 64]}).cuda()
    inputs = torch.randn(64, 128, 64, device="cuda")
    model(inputs).sum().backward()  # gradients and work spaces
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(inputs).sum().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_peak_is_flat_with_depth() -> None:
    peaks: dict[str, Sequence[int]] = {s: [peak(s, d) for d in (2, 4, 12)] for s in STRATEGIES}
    assert peaks["reversible"][2] < 1.05 * peaks["reversible"][0]
    assert peaks["checkpoint"][2] > peaks["checkpoint"][0]
    assert peaks["store"][2] > 4 * peaks["store"][0]
    assert peaks["store"][2] > 3 * peaks["reversible"][2]


# Streams of work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", REPLAYED)
def test_inputs_and_backward_on_a_side_stream(strategy: str) -> None:
    results = []
    for backward_strategy in ("store", strategy):
        model = network(additive(backward=backward_strategy)).cuda()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            backward_on_gpu(model(torch.ones(4, 5, 6, device="cuda", dtype=torch.float64)))
        torch.cuda.synchronize()
        results.append(gradients(model))
    assert_alike(results[1], results[0])


# Exact arithmetic ---------------------------------------------------------------------------------

SCALED: dict[str, dict[str, Any]] = {
    "unit": {"update": ["x += F(y)", "y += F(x)"]},
    "parity": {
        "constants": {"gamma": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0}},
        "update": ["x = gamma*x + (1 + gamma)*F(y)", "x, y = y, x"],
    },
    "remainder": {"update": ["x = 0.9*x + F(y)", "y = 0.9*y + F(x)"]},
    "monotone": {"update": ["x = x*exp(tanh(F(y))) + 0.1*y", "y = 0.95*y + F(x)"]},
    "gauge": {
        "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99], "per": "channel"}},
        "update": ["y = gamma*y + F(x)", "x += y"],
    },
}


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The algorithms that give the same bits each time."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("error:not compiled")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", SCALED)
def test_exact_gradients_bit_for_bit(form: str, half: bool, deterministic: None) -> None:
    stage = {
        "depth": 12,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["layer_norm", {"attention": {"heads": 2}}, {"dropout": 0.1}]},
        "output": "concat(x, y)",
        "arithmetic": {"exact": 12},
        **SCALED[form],
    }
    torch.manual_seed(0)
    model = network(stage, torch.float32, input={"tokens": [33, 32]}).cuda()
    inputs, found = torch.randn(5, 33, 32, device="cuda"), []
    for strategy in STRATEGIES:
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = model.set_backward(strategy)(inputs).square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_a_range_is_watched_on_the_gpu() -> None:
    model = network({**additive(), "arithmetic": "exact"}, torch.float32).cuda()
    with pytest.raises(archspec.RangeError, match="before the first layer"):
        model(1e4 * torch.randn(2, *model.input, device="cuda"))
