"""Matrices with orthonormal rows or columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import projgrad as pg
from tests.cases import Case
from tests.cases.spectral import of_singular_values, singular


@dataclass(frozen=True, repr=False)
class FullRank(Case):
    """Groups with one nearest point: on others, two code paths may differ (`tests/test_orthogonal.py`)."""

    def groups(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        made = super().groups(seed, shape)
        for i, group in enumerate(made):
            least, most = singular(group)[[-1, 0]]
            if least < 1e-3 * most or most == 0:
                made[i] = np.random.default_rng(seed + i).standard_normal(shape) + 3 * np.eye(*shape)
        return made


CASES = [
    FullRank(
        pg.Orthogonal(),
        [(1, 1), (4, 3), (3, 5), (3, 3)],
        lambda y: float(np.linalg.norm(singular(y) - 1)),
        of_singular_values(np.sign),
        convex=False,
        accuracy=8.0,
    )
]
