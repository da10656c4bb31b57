"""How far training is: a tensor among the buffers, which coefficients read, and which says whether
a stage has an inverse yet."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from small_networks import network
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel

from compiler.network import Network

WARMING: dict[str, Any] = {
    "depth": 2,
    "coupling": "momentum_pair",
    "functions": {"F": ["tanh", {"linear": "channels"}], "G": [{"linear": "channels"}]},
    "constants": {"gamma": "0.9*progress"},
    "backward": {"reversible": {"from": 0.7}},
}


def warm(progress: float, dtype: torch.dtype = torch.float32) -> Network:
    model = network(WARMING, dtype)
    model.set_progress(progress)
    return model


def stage_of(model: Network) -> Any:
    return model.stages[0]


def loaded(model: Network, dtype: torch.dtype = torch.float32, **keys: Any) -> Network:
    file = BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network(WARMING, dtype, seed=1)
    other.load_state_dict(torch.load(file), **keys)
    return other


def copied_over(model: Network) -> Network:
    other = warm(0.95)
    for mine, theirs in zip(other.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
    return other


def averaged(model: Network) -> Network:
    """As an exponential moving average of weights keeps it."""
    average = AveragedModel(warm(0.0))
    average.update_parameters(model)
    module: Network = average.module
    return module


WAYS: dict[str, Callable[[Network], Network]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "double": lambda model: model.double(),
    "half and back": lambda model: model.bfloat16().double(),
    "loaded": loaded,
    "loaded into double": lambda model: loaded(model, torch.float64),
    "loaded from double": lambda model: loaded(model.double()),
    "double loaded by double": lambda model: loaded(model.double(), torch.float64),
    "assigned": lambda model: loaded(model, assign=True),
    "assigned to double": lambda model: loaded(model, torch.float64, assign=True),
    "shared": lambda model: model.share_memory(),
    "copied over": copied_over,
    "averaged": averaged,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.69, 0.7, 0.7001, 1.0])
def test_a_stage_is_as_far_as_its_tensor_says(progress: float, way: str) -> None:
    """0.7 in a lower precision is less than 0.7, and does not begin later for that."""
    model = WAYS[way](warm(progress))
    stage = stage_of(model)
    assert stage.has_inverse == (progress >= 0.7)
    rounding = 2**-8 if way == "half and back" else 2**-24
    assert float(stage.progress) == pytest.approx(progress, rel=rounding)


def test_gradients_follow_a_progress_that_somebody_else_has_set() -> None:
    """Where gamma is 0 nothing is reconstructed, whatever was set before."""
    model, tokens = warm(1.0), torch.randn(2, 5, 6)
    name = next(n for n, _ in model.named_buffers() if n.endswith("progress"))
    start = {name: torch.zeros(())}
    called = torch.func.functional_call(model, start, (tokens,)).sum()
    for gradient in torch.autograd.grad(called, list(model.parameters())):
        assert gradient.isfinite().all()


def test_a_copy_is_as_far_by_itself() -> None:
    model = warm(0.9)
    other = copy.deepcopy(model)
    other.set_progress(0.1)
    assert stage_of(model).has_inverse
    assert not stage_of(other).has_inverse


def test_weights_of_another_progress_change_it() -> None:
    model = warm(0.9)
    model.load_state_dict(warm(0.2).state_dict())
    assert not stage_of(model).has_inverse
    weights = {n: w for n, w in warm(1.0).state_dict().items() if "progress" not in n}
    model.load_state_dict(weights, strict=False)
    assert not stage_of(model).has_inverse


def test_a_stage_says_how_far_it_is() -> None:
    stage = stage_of(warm(0.5))
    with pytest.raises(ValueError, match=r"progress runs from 0 to 1, found -0\.5"):
        stage.set_progress(-0.5)
    with pytest.raises(RuntimeError, match=r"before training's progress is 0\.7, and it is 0\.5"):
        stage.inverse(torch.ones(2, 5, 6), torch.ones(2, 5, 6))
    stage.set_progress(0.7)
    assert stage.has_inverse


@pytest.mark.filterwarnings("ignore")
def test_compiled_once_before_and_once_after() -> None:
    """Each step of training may have its own progress."""
    torch._dynamo.reset()
    model, counter = warm(0.0), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    tokens, frames = torch.randn(2, 5, 6), []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.8, 0.9, 0.95):
        model.set_progress(progress)
        compiled(tokens).sum().backward()
        frames.append(counter.frame_count)
    assert frames[1] == frames[4]
    assert frames[5] == frames[7]
