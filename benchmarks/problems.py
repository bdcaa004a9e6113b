"""Convex problems with a known constrained minimum, on which optimizers are tried with and without the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import projgrad as pg

__all__ = ["Problem", "digits", "least_squares", "quadratics"]

# for sets without bounds, in which the minimum is farther away and takes longer to get to
WIDE: dict[str, Any] = {"scale": 0.3, "condition": 20.0, "slope": 0.15}


@dataclass(frozen=True)
class Problem:
    """``min f(x)`` for x in a set.

    Args:
        name: in tables.
        constraint: the set.
        start: a point of it.
        value: f, of an array of any framework, with its module of functions named as in NumPy as `xp`.
        gradient: that of f, in NumPy.
        curvature: the largest one of f.
        scale: a step that is right for the entries of x.
    """

    name: str
    constraint: pg.Constraint
    start: np.ndarray
    value: Callable[[Any, Any], Any]
    gradient: Callable[[np.ndarray], np.ndarray]
    curvature: float
    scale: float

    def minimum(self, steps: int = 5_000) -> float:
        """The least value, by the Euclidean projected gradient method, with Nesterov's momentum and restarts."""
        x = y = self.start
        t = 1.0
        for _ in range(steps):
            new = self.constraint.project(y - self.gradient(y) / self.curvature)
            if ((y - new) * (new - x)).sum() > 0:  # it goes uphill
                t = 1.0
            further = (1 + np.sqrt(1 + 4 * t * t)) / 2
            moved = np.abs(new - x).max()
            x, y, t = new, new + (t - 1) / further * (new - x), further
            if moved < 1e-17 * (1 + np.abs(x).max()):
                break
        return float(self.value(x, np))


def _quadratic(
    name: str,
    constraint: pg.Constraint,
    shape: tuple[int, ...] = (20,),
    scale: float = 0.05,
    condition: float = 1000.0,
    slope: float = 0.03,
) -> Problem:
    rng = np.random.default_rng(0)
    n = int(np.prod(shape))
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    a = (q * np.geomspace(1 / condition, 1, n)) @ q.T
    b = slope * rng.standard_normal(n)

    def value(x: Any, xp: Any) -> Any:
        x = xp.reshape(x, (n,))
        return xp.sum(x * (0.5 * xp.matmul(_like(a, x, xp), x) - _like(b, x, xp)))

    def gradient(x: np.ndarray) -> np.ndarray:
        return (a @ x.reshape(n) - b).reshape(shape)

    start = constraint.project(np.full(shape, 1.0 / n))
    return Problem(f"quadratic, {name}", constraint, start, value, gradient, 1.0, scale)


def _like(values: np.ndarray, x: Any, xp: Any) -> Any:
    return xp.asarray(values, dtype=x.dtype)


def quadratics() -> list[Problem]:
    """A quadratic of 20 variables, or 16, in every kind of set that couples entries; condition number 1000, or 20."""
    order = np.linspace(-1.0, 1.0, 20)
    rows = np.random.default_rng(1).standard_normal((3, 20))
    return [
        _quadratic("simplex", pg.Simplex()),
        _quadratic("l2 ball", pg.L2Ball(1.0)),
        _quadratic("l2 ball with a center", pg.L2Ball(0.5, 0.3)),
        _quadratic("l1 ball", pg.L1Ball(1.0)),
        _quadratic("max-norm per row", pg.MaxNorm(0.5, axis=1), (4, 5)),
        _quadratic("capped simplex", pg.CappedSimplex(1.0, 0.0, 0.2)),
        _quadratic("sum", pg.SumTo(1.0), **WIDE),
        _quadratic("halfspace", pg.Halfspace(order, -2.0), **WIDE),
        _quadratic("affine set", pg.Affine(rows, [1.0, 0.0, -0.5]), **WIDE),
        _quadratic("monotone", pg.Monotone(), **WIDE),
        _quadratic("unimodal", pg.Unimodal(peak=8), **WIDE),
        _quadratic("bounded variation", pg.TotalVariationBall(1.0), **WIDE),
        _quadratic("group l1 ball", pg.GroupL1Ball(1.0), (5, 4)),
        _quadratic("l1,inf ball", pg.L1InfBall(1.0), (5, 4)),
        _quadratic("second-order cone", pg.SecondOrderCone(), **WIDE),
        _quadratic("symmetric", pg.Symmetric(), (4, 4), **WIDE),
        _quadratic("simplex and halfspace", pg.Simplex() & pg.Halfspace(order, -0.1)),
        _quadratic("ball and orthant", pg.MaxNorm(0.5, axis=-1) & pg.NonNeg()),
        _quadratic("box (no difference)", pg.Box(-0.1, 0.2)),
    ]


def least_squares() -> Problem:
    """Non-negative least squares with a sum constraint: the weights of a mixture of 12 spectra."""
    rng = np.random.default_rng(2)
    centers, widths = np.linspace(0, 1, 12), rng.uniform(0.03, 0.06, 12)
    t = np.linspace(0, 1, 100)[:, None]
    spectra = np.exp(-0.5 * ((t - centers) / widths) ** 2)
    truth = pg.Simplex(3.0).project(rng.standard_normal(12))
    seen = spectra @ truth + 0.05 * rng.standard_normal(100)

    def value(x: Any, xp: Any) -> Any:
        rest = xp.matmul(_like(spectra, x, xp), x) - _like(seen, x, xp)
        return 0.5 * xp.sum(rest * rest)

    def gradient(x: np.ndarray) -> np.ndarray:
        return spectra.T @ (spectra @ x - seen)

    curvature = float(np.linalg.norm(spectra, 2) ** 2)
    simplex = pg.Simplex(3.0)
    start = simplex.project(np.full(12, 0.1))
    return Problem("mixture of spectra, simplex", simplex, start, value, gradient, curvature, 0.05)


def digits() -> list[Problem]:
    """Logistic regression on scikit-learn's handwritten digits, with a little ridge, in three sets."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = data.data[:600].T / 16.0, np.eye(10)[:, data.target[:600]]
    ridge = 1e-2

    def value(w: Any, xp: Any) -> Any:
        scores = xp.matmul(w, _like(x, w, xp))
        top = xp.max(scores)
        losses = xp.log(xp.sum(xp.exp(scores - top), 0)) + top - xp.sum(scores * _like(y, w, xp), 0)
        return xp.sum(losses) / x.shape[1] + 0.5 * ridge * xp.sum(w * w)

    def gradient(w: np.ndarray) -> np.ndarray:
        scores = w @ x
        chances = np.exp(scores - scores.max(0))
        chances /= chances.sum(0)
        made: np.ndarray = (chances - y) @ x.T / x.shape[1] + ridge * w
        return made

    curvature = float(0.5 * np.linalg.norm(x, 2) ** 2 / x.shape[1]) + ridge
    sets = [
        ("l1 ball", pg.L1Ball(30.0, axis=None)),
        ("max-norm per class", pg.MaxNorm(1.0, axis=1)),
        ("simplex per class", pg.Simplex(5.0, axis=1)),
    ]
    return [
        Problem(f"digits, {name}", c, c.project(np.zeros((10, 64))), value, gradient, curvature, 0.1)
        for name, c in sets
    ]
