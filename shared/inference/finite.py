"""Which inputs of a batch have no numbers. Does not know what the numbers mean."""

from __future__ import annotations

import numpy as np

from shared.contracts import SparseRow
from shared.engines.base import Rows
from shared.vectors import rows_not_finite


def not_finite(rows: Rows) -> list[int]:
    """The indices of those whose rows hold NaN or an infinity."""
    if not isinstance(rows, list):
        return rows_not_finite(rows)
    numbers = (row.values if isinstance(row, SparseRow) else row for row in rows)
    return [index for index, each in enumerate(numbers) if not np.isfinite(each).all()]
