"""Files of weights that hold something else, and values that are no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from archspec.dumping import scalar_text
from archspec.loading import setting_tree
from compiler.conversion.convert import ConversionError, check_finite
from compiler.conversion.sources import SourceError, read_tensors

ODD = {
    "complex": torch.zeros(2, 2, dtype=torch.complex64),
    "bytes": torch.zeros(2, 2, dtype=torch.int8),
    "whole": torch.zeros(2, 2, dtype=torch.int64),
    "meta": torch.zeros(2, 2, device="meta"),
    "sparse": torch.eye(2).to_sparse(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_weight_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fine": torch.ones(2), "odd": ODD[kind]}, path)
    with pytest.raises(SourceError, match="`odd`"):
        read_tensors(path)


def test_counters_of_norms_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"norm.num_batches_tracked": torch.tensor(3), "w": torch.ones(2).half()}, path)
    assert list(read_tensors(path)) == ["norm.num_batches_tracked", "w"]


@pytest.mark.parametrize(
    "value", [torch.tensor([1.0, float("nan")]), torch.tensor([1e300], dtype=torch.float64).float()]
)
def test_values_that_are_no_numbers_are_refused(value: Tensor) -> None:
    with pytest.raises(ConversionError, match=r"not finite.*: w"):
        check_finite({"v": torch.ones(2), "w": value})


@pytest.mark.parametrize("name", ["my weights #1.safetensors", "123", "~", "[x].st", "a: b"])
def test_any_file_name_can_be_set(name: str) -> None:
    """As `convert` prints it for what is next."""
    tree = setting_tree(f"train.start_from={scalar_text(name)}")
    assert tree.plain() == {"train": {"start_from": name}}
