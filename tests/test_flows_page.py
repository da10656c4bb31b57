"""docs/flows.md shows a flow that can be copied."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import archspec
from compiler.base_flow import BaseFlow

PAGE = (Path(__file__).parents[1] / "docs" / "flows.md").read_text(encoding="utf-8")


def test_the_flow_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_flow.yaml").write_text(text, encoding="utf-8")
    flow = archspec.build(tmp_path / "my_flow.yaml").double()
    assert isinstance(flow, BaseFlow)
    assert flow.stages[0].backward == "reversible"
    values = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    encoded = flow.encode(values)
    assert torch.allclose(flow.decode(encoded.latents), values)
    assert torch.isfinite(flow(values)).all()
