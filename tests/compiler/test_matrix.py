"""The matrix of docs/matrix.md: every row for every coupling and strategy."""

from __future__ import annotations

from pathlib import Path

import pytest
from coupling_equations import COUPLINGS, VARIANTS, strategies
from matrix_rows import ROWS, page
from matrix_table import Row
from plain_networks import Case

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
CELLS = [
    pytest.param(row, Case(coupling, strategy), id=f"{row.name}-{coupling}-{strategy}")
    for row in ROWS
    for coupling in COUPLINGS
    if coupling not in VARIANTS
    for strategy in strategies(coupling)
    if strategy in row.only
]


# PyTorch's own: of forward-mode layer norm, and of Dynamo looking at what it resumes with.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("row", "case"), CELLS)
def test_matrix(row: Row, case: Case) -> None:
    refusal = row.refused.get(case.strategy)
    if refusal is None:
        row.check(case)
    else:
        with pytest.raises(refusal.kind, match=refusal.message):
            row.check(case)


def test_the_table_is_up_to_date() -> None:
    message = "run: python tests/compiler/matrix_rows.py > docs/matrix.md"
    assert PAGE.read_text(encoding="utf-8") == page(), message
