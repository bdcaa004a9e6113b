"""Symmetric matrices: what is special about them."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg
from tests.cases.symmetric import nearest_correlation
from tests.frameworks import FRAMEWORKS, Framework

SETS = (pg.Symmetric(), pg.SkewSymmetric(), pg.PositiveSemidefinite(), pg.Spectraplex(), pg.Correlation())


@pytest.mark.parametrize("constraint", SETS, ids=repr)
def test_matrices_must_be_square(constraint: pg.Constraint) -> None:
    with pytest.raises(ValueError, match=r"set of square matrices; along axis=\(-2, -1\) they are 3 by 2"):
        constraint.project(np.ones((4, 3, 2)))
    with pytest.raises(ValueError, match="is not a pair"):
        type(constraint)(axis=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pg.PositiveSemidefinite(np.inf), "min_eigenvalue=inf is an eigenvalue, so it must be finite"),
        (lambda: pg.Spectraplex(-1.0), "total=-1.0 is a sum of numbers of at least 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_symmetric_bit_for_bit(framework: Framework, dtype: str) -> None:
    x = framework.make(np.random.default_rng(0).standard_normal((3, 20, 20)), dtype)
    for constraint in SETS:
        y = framework.read(framework.project(constraint, x))
        sign = -1 if constraint == pg.SkewSymmetric() else 1
        assert np.array_equal(y, sign * np.swapaxes(y, 1, 2))
        assert constraint.contains(framework.make(y, dtype))
    assert (np.diagonal(y, axis1=1, axis2=2) == 1).all()  # of the last, the correlation matrices


@pytest.mark.parametrize("n", [30, 60])
def test_optimality_of_cones(n: int) -> None:
    """x = y + z with y and -z in the cone, at a right angle (Moreau)."""
    x = np.random.default_rng(1).standard_normal((n, n))
    part = (x + x.T) / 2
    y = pg.PositiveSemidefinite().project(x)
    assert np.linalg.eigvalsh(y)[0] >= -1e-13
    assert np.linalg.eigvalsh(part - y)[-1] <= 1e-13
    assert abs((y * (part - y)).sum()) <= 1e-11
    shifted = pg.PositiveSemidefinite(0.5).project(x)
    np.testing.assert_allclose(
        shifted, pg.PositiveSemidefinite().project(x - 0.5 * np.eye(n)) + 0.5 * np.eye(n), atol=1e-12
    )


def test_equivalences() -> None:
    values = np.random.default_rng(2).standard_normal((3, 5))
    diagonal = np.stack([np.diag(v) for v in values])
    found = pg.Spectraplex(2.0).project(diagonal)
    np.testing.assert_allclose(found, [np.diag(v) for v in pg.Simplex(2.0).project(values)], atol=1e-14)
    x = np.random.default_rng(3).standard_normal((3, 5, 5))
    np.testing.assert_allclose(pg.Symmetric().project(x) + pg.SkewSymmetric().project(x), x, atol=1e-15)


def test_a_cone_solver_agrees() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    x = np.random.default_rng(4).standard_normal((4, 4))
    y = cvxpy.Variable(x.shape, PSD=True)
    for constraint, extra in ((pg.Spectraplex(1.5), cvxpy.trace(y) == 1.5), (pg.Correlation(), cvxpy.diag(y) == 1)):
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - x)), [extra]).solve(solver="SCS", eps=1e-9)
        np.testing.assert_allclose(constraint.project(x), y.value, atol=1e-6)


def optimality_of_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """How far the multiplier ``y - x + diag`` is from being positive semidefinite and 0 on y, as a part of x."""
    part = (x + x.T) / 2
    multiplier = y - part - np.diag(np.diag((y - part) @ y))
    size = max(np.abs(x).max(), 1.0) * len(x)
    return max(np.abs(multiplier @ y).max(), -np.linalg.eigvalsh(multiplier)[0]) / size


@pytest.mark.parametrize("n", [2, 3, 10, 60])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 1000.0])
def test_optimality_of_correlation_matrices(n: int, scale: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(3):
        x = rng.standard_normal((n, n))
        x *= scale / np.abs(x).max()
        y = pg.Correlation().project(x)
        assert (np.diag(y) == 1).all()
        assert np.linalg.eigvalsh(y)[0] >= -1e-14 * n
        assert optimality_of_correlation(x, y) <= (1e-13 if scale <= 10 else 1e-11)


def test_correlation_matrices_of_highams_paper() -> None:
    """The example of Higham, IMA J. Numer. Anal. 22 (2002), section 4, with its nearest point to four digits."""
    x = np.array([[2.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 2]])
    expected = nearest_correlation(x)
    np.testing.assert_allclose(expected[0], [1, -0.8084, 0.1916, 0.1068], atol=5e-5)
    np.testing.assert_allclose(pg.Correlation().project(x), expected, atol=1e-12)


def test_huge_entries_still_give_correlation_matrices(framework: Framework) -> None:
    for scale in (1e5, 1e15, 1e30):
        x = framework.make(np.random.default_rng(6).standard_normal((2, 6, 6)) * scale, "float32")
        y = framework.read(framework.project(pg.Correlation(), x))
        assert (np.diagonal(y, axis1=1, axis2=2) == 1).all()
        assert np.linalg.eigvalsh(y).min() >= -1e-6


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.name == "tensorflow"], ids=repr)
def test_compiled_decompositions_of_tensorflow_are_accurate(framework: Framework) -> None:
    """XLA's own stop at an error of 1e-7."""
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    import tensorflow as tf

    from projgrad_backends.tensorflow.linalg import eigh, svd

    rng = np.random.default_rng(7)
    x = rng.standard_normal((5, 9, 7))
    x[1], x[2], x[3] = np.round(x[1]), 0, 1
    for values in (x, np.swapaxes(x, 1, 2), x[:, :, :1]):
        u, s, vt = (framework.read(a) for a in tf.function(svd, jit_compile=True)(tf.constant(values)))
        k = s.shape[-1]
        np.testing.assert_allclose(u * s[:, None] @ vt, values, atol=1e-13)
        np.testing.assert_allclose(np.swapaxes(u, 1, 2) @ u, np.broadcast_to(np.eye(k), (5, k, k)), atol=1e-13)
        np.testing.assert_allclose(vt @ np.swapaxes(vt, 1, 2), np.broadcast_to(np.eye(k), (5, k, k)), atol=1e-13)
        assert (np.diff(s) <= 0).all()
    square = x[:, :7] + np.swapaxes(x[:, :7], 1, 2)
    values, q = (framework.read(a) for a in tf.function(eigh, jit_compile=True)(tf.constant(square)))
    np.testing.assert_allclose(q * values[:, None] @ np.swapaxes(q, 1, 2), square, atol=1e-13)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(square), atol=1e-13)
