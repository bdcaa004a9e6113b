"""Problems in boxes, and what SciPy's L-BFGS-B makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")  # which the benchmark has at hand

from benchmarks import line_search

BOXES = {
    "least squares": line_search.nonnegative_least_squares,
    "ill-conditioned": line_search.box_least_squares,
    "logistic regression": line_search.box_logistic,
}


def box(name: str) -> tuple[Any, float]:
    pytest.importorskip("scipy")
    pytest.importorskip("sklearn")
    problem = BOXES[name]()
    return problem, line_search.least(problem)


def by_spg(problem: Any, most: int = 5000) -> Any:
    return line_search.METHODS["SPG, PyTorch"](problem, most)


def relative(problem: Any, end: Any, least: float) -> float:
    return (float(problem.value(end.x, np)) - least) / abs(least)


def factors() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    v = np.abs(rng.standard_normal((20, 3))) @ np.abs(rng.standard_normal((3, 15)))
    v += 0.1 * np.abs(rng.standard_normal(v.shape))
    return v, np.abs(rng.standard_normal((20, 3))), np.abs(rng.standard_normal((3, 15)))


def stationarity(v: Any, w: Any, h: Any) -> float:
    """The largest entry of the projected gradient of half the squared distance of ``w @ h`` from v."""
    rest = w @ h - v
    return max(float(np.abs(np.maximum(x - g, 0) - x).max()) for x, g in ((w, rest @ h.T), (h, w.T @ rest)))


def l_bfgs_b(v: Any, w: Any, h: Any) -> float:
    optimize = pytest.importorskip("scipy.optimize")

    def value(x: Any) -> Any:
        w_, h_ = x[: w.size].reshape(w.shape), x[w.size :].reshape(h.shape)
        rest = w_ @ h_ - v
        return 0.5 * (rest * rest).sum(), np.concatenate([(rest @ h_.T).ravel(), (w_.T @ rest).ravel()])

    start = np.concatenate([w.ravel(), h.ravel()])
    x = optimize.minimize(value, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * start.size).x
    return stationarity(v, x[: w.size].reshape(w.shape), x[w.size :].reshape(h.shape))
