"""Every row of the matrix. `python tests/compiler/matrix_rows.py > docs/matrix.md` writes the
table."""

from __future__ import annotations

import matrix_functions
import matrix_gradients
import matrix_machinery
import matrix_passes
import matrix_states
import matrix_table
from coupling_equations import COUPLINGS, VARIANTS

THEMES = (
    matrix_gradients.THEME,
    matrix_passes.THEME,
    matrix_functions.THEME,
    matrix_states.THEME,
    matrix_machinery.THEME,
)
ROWS = sorted(matrix_table.ROWS, key=lambda row: THEMES.index(row.theme))


def page() -> str:
    """The text of docs/matrix.md."""
    return matrix_table.table(ROWS, len(COUPLINGS) - len(VARIANTS))


if __name__ == "__main__":
    print(page(), end="")
