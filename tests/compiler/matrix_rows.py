"""Every row of the matrix. `python tests/compiler/matrix_rows.py > docs/matrix.md` writes the
table."""

from __future__ import annotations

import matrix_functions as _functions  # noqa: F401
import matrix_gradients as _gradients  # noqa: F401
import matrix_machinery as _machinery  # noqa: F401
import matrix_passes as _passes  # noqa: F401
import matrix_states as _states  # noqa: F401
from coupling_equations import COUPLINGS
from matrix_table import ROWS, table


def page() -> str:
    """The text of docs/matrix.md."""
    return table(ROWS, len(COUPLINGS))


if __name__ == "__main__":
    print(page(), end="")
