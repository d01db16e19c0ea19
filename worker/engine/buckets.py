"""Calls of few widths: padded with copies of their last row, and cut again.

What is compiled or recorded is so for one shape. Rows are independent, so that those added change nothing for the
others; a copy of a row, unlike zeros, is sure to be a number that the model takes.
"""

from __future__ import annotations

from typing import Any

import torch

from worker.engine.calls import Joined, leaves_of, rebuilt

#: Rows of calls that are compiled or recorded.
WIDTHS = (1, 2, 4, 8, 16, 32, 64)


def bucket(rows: int) -> int:
    """Return the width that a call of so many rows gets; one that is wider than all keeps its own."""
    return next((width for width in WIDTHS if width >= rows), rows)


def padded(joined: Joined) -> Joined:
    """Return the call with as many rows as its bucket."""
    missing = bucket(joined.rows) - joined.rows
    if not missing:
        return joined
    leaves = {
        path: lengthened(leaf, missing) if path in joined.with_rows else leaf for path, leaf in joined.leaves.items()
    }
    return joined.but(leaves, joined.rows + missing)


def lengthened(rows: torch.Tensor, missing: int) -> torch.Tensor:
    """Return the rows with the last of them repeated behind."""
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def cut(returned: Any, rows: int) -> Any:
    """Return what a module returned for its first rows only."""
    return rebuilt(
        returned, {path: leaf[:rows] for path, leaf in leaves_of(returned) if isinstance(leaf, torch.Tensor)}
    )
