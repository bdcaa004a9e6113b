"""Quadratics on an orthant, on which momentum pushes entries against their bound before they have to leave it."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

__all__ = ["MOMENTUM", "RATE", "orthant_problems"]

RATE, MOMENTUM = 0.2, 0.99


def orthant_problems() -> list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Matrix and vector of ``x'Ax / 2 - b'x``, where to start, and the value to reach: the minimum up to 1e-6 of it."""
    made = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = 20
        q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        a, b, start = (q * np.geomspace(0.01, 1, n)) @ q.T, rng.standard_normal(n), 15 * rng.random(n)
        least = minimize(
            lambda x, a=a, b=b: (0.5 * x @ a @ x - b @ x, a @ x - b),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * n,
            options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000},
        ).fun
        made.append((a, b, start, least + 1e-6 * abs(least)))
    return made
