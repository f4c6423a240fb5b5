"""Runs of equal rows in sorted columns."""

from __future__ import annotations

import numpy as np


def begins(*columns: np.ndarray) -> np.ndarray:
    """bool[n]: the rows of sorted columns that differ from the row before; the first row does.

    >>> begins(np.array([1, 1, 2, 2]), np.array([5, 5, 5, 6])).tolist()
    [True, False, True, True]
    """
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new
