"""Few entries, or few rows, that are not zero: what is special to these sets."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg
from projgrad.namespace import native
from tests.cases.sparse import sparse_simplex
from tests.cases.thresholds import by_bisection
from tests.frameworks import FRAMEWORKS, Framework, same


def test_no_other_support_is_nearer() -> None:
    rng = np.random.default_rng(0)
    for k, total in ((1, 1.0), (2, 1.0), (3, 0.2), (4, 30.0)):
        for v in rng.standard_normal((10, 6)) * 10.0 ** rng.uniform(-1, 1, (10, 1)):
            supports = [list(s) for s in itertools.combinations(range(6), k)]
            least = min(np.linalg.norm(np.delete(v, s)) for s in supports)
            assert pg.Cardinality(k).violation(v) == pytest.approx(least, rel=1e-12)
            least = min(
                np.hypot(np.linalg.norm(np.delete(v, s)), np.linalg.norm(v[s] - by_bisection(v[s], total)))
                for s in supports
            )
            assert pg.SparseSimplex(k, total).violation(v) == pytest.approx(least, rel=1e-12)


def test_the_first_of_equal_ones_are_kept(framework: Framework, dtype: str) -> None:
    x = framework.make(
        np.array([[1.0, -2.0, 2.0, -2.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0], [0.0, 1.0, -0.0, 1.0, 1.0]]), dtype
    )
    y = framework.read(framework.project(pg.Cardinality(2), x))
    assert y.tolist() == [[0, -2, 2, 0, 0], [3, 3, 0, 0, 0], [0, 1, 0, 1, 0]]
    y = framework.read(framework.project(pg.SparseSimplex(2), x))
    assert y[1].tolist() == [0.5, 0.5, 0, 0, 0]
    rows = framework.make(np.array([[3.0, 4.0], [-5.0, 0.0], [0.0, 0.0], [4.0, 3.0], [6.0, 0.0]]), dtype)
    y = framework.read(framework.project(pg.L0Groups(3), rows))
    assert y.tolist() == [[3, 4], [-5, 0], [0, 0], [0, 0], [6, 0]]


def test_any_number_of_them_with_ties_and_without(framework: Framework) -> None:
    normal = np.random.default_rng(8).standard_normal((6, 41))
    for k in (1, 20, 21, 40):
        for values in (normal, np.round(2 * normal), np.where(np.arange(41) < 20, normal, 0.0)):
            x = framework.make(values, "float32")
            expected = framework.read(x).copy()
            y = framework.read(framework.project(pg.Cardinality(k), x))
            last = np.argsort(-np.abs(expected), axis=1, kind="stable")[:, k:]
            np.put_along_axis(expected, last, 0.0, axis=1)
            np.testing.assert_array_equal(y, expected)


def test_what_is_kept_is_kept_bit_for_bit(framework: Framework, dtype: str) -> None:
    values = np.random.default_rng(1).standard_normal((5, 70))
    values[0, :60] = -0.0
    x = framework.make(values, dtype)
    y = framework.read(framework.project(pg.Cardinality(10), x))
    assert ((y != 0).sum(1) == 10).all()
    assert (y[y != 0] == framework.read(x)[y != 0]).all()
    assert same(y[0], framework.read(x)[0])


def test_tiny_entries_count_too(framework: Framework) -> None:
    # a group that is almost sparse is not kept
    x = framework.make(np.array([[1.0, 1e-12, 1e-30]]), "float32")
    assert framework.read(framework.project(pg.Cardinality(1), x)).tolist() == [[1, 0, 0]]
    assert not pg.Cardinality(1).contains(x)
    assert pg.Cardinality(3).contains(x)
    assert framework.read(framework.project(pg.SparseSimplex(1), x)).tolist() == [[1, 0, 0]]
    assert not pg.SparseSimplex(2).contains(x)
    assert framework.read(framework.project(pg.L0Groups(2, axis=(1, 0)), x))[0, 2] == 0


@pytest.mark.parametrize("k", [0, 1, 7, 8, 100])
def test_any_number_of_entries(framework: Framework, k: int) -> None:
    values = np.random.default_rng(2).standard_normal((3, 7))
    x = framework.make(values, "float32")
    y = framework.read(framework.project(pg.Cardinality(k), x))
    assert ((y != 0).sum(1) == min(k, 7)).all()
    if k >= 7:
        assert same(y, framework.read(x))
    rows = framework.read(framework.project(pg.L0Groups(k), x))
    assert rows.any(1).sum() == min(k, 3)
    if k:
        y = framework.read(framework.project(pg.SparseSimplex(k), x))
        np.testing.assert_allclose(y, [sparse_simplex(v, k, 1.0) for v in values], atol=1e-6)


def test_enough_entries_make_a_simplex(framework: Framework) -> None:
    x = framework.make(np.random.default_rng(3).standard_normal((3, 40)), "float64")
    y = framework.read(framework.project(pg.SparseSimplex(40, 2.0), x))
    assert same(y, framework.read(framework.project(pg.Simplex(2.0), x)))


def test_one_entry_of_the_sparse_simplex_takes_all() -> None:
    assert pg.SparseSimplex(1, 3.0)(np.array([-5.0, -4.0, -4.5])).tolist() == [0, 3, 0]


def test_filters_of_a_kernel(framework: Framework) -> None:
    values = np.random.default_rng(4).standard_normal((3, 3, 2, 5)) * np.array([1.0, 5.0, 0.1, 3.0, 2.0])
    x = framework.make(values, "float32")
    for constraint in (
        pg.L0Groups(2, axis=(3, (0, 1, 2))),
        pg.L0Groups(2, axis="incoming").bind((3, 3, 2, 5), (0, 1, 2)),
    ):
        y = framework.read(framework.project(constraint, x))
        assert same(y, framework.read(x) * np.array([0.0, 1.0, 0.0, 1.0, 0.0]) + 0.0) or np.array_equal(
            y, framework.read(x) * np.array([0.0, 1.0, 0.0, 1.0, 0.0])
        )


def test_rows_may_be_huge_or_tiny(framework: Framework) -> None:
    for size in (1e-37, 1e37):
        values = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0], [1.0, 2.0, 1.0, 2.0]]) * size
        y = framework.read(framework.project(pg.L0Groups(2), framework.make(values, "float32")))
        assert y.any(1).tolist() == [False, True, True]
    values = np.array([[2.0, 2.0, 1.0, 1.0], [3.0, 1.5, 1.5, 0.0], [2.0, 2.0, 2.0, 2.0]]) * 1e38  # norms of 3 to 4e38
    y = framework.read(framework.project(pg.L0Groups(1), framework.make(values, "float32")))
    assert y.any(1).tolist() == [False, False, True]


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
def test_derivatives(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    with framework.scope():
        x = framework.make(np.array([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), "float64")
        w = framework.make(np.arange(1.0, 10.0).reshape(3, 3), "float64")
        found = framework.read(framework.gradient(pg.Cardinality(1).project, x, w))
        np.testing.assert_array_equal(found, [[0, 2, 0], [4, 0, 0], [7, 0, 0]])
        found = framework.read(framework.gradient(pg.L0Groups(1).project, x, w))
        np.testing.assert_array_equal(found, [[1, 2, 3], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.Cardinality(-1), "at least 0"),
        (lambda: pg.Cardinality(cast(Any, 1.0)), "not an int"),
        (lambda: pg.Cardinality(cast(Any, True)), "not an int"),
        (lambda: pg.Cardinality(1, axis="rows"), "incoming"),
        (lambda: pg.Cardinality(1, rate=0), "rate"),
        (lambda: pg.SparseSimplex(0), "at least 1"),
        (lambda: pg.SparseSimplex(1, -1.0), "total"),
        (lambda: pg.SparseSimplex(1, math.inf), "total"),
        (lambda: pg.L0Groups(-1), "at least 0"),
        (lambda: pg.L0Groups(1, axis=0), "not a pair"),
        (lambda: pg.L0Groups(1, axis=(0, 0)).project(np.ones((2, 2))), "both of the pair"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_order_statistics_are_those_of_a_sort(framework: Framework) -> None:
    # of one place too low, a set would still be right, but not quick
    values = np.random.default_rng(0).integers(-4, 4, (3, 9)).astype(float)
    x, xp = native(framework.make(values, "float32"))
    for index in range(9):
        found = framework.read(xp.order_statistic(x, index))
        assert same(found, np.sort(values, axis=-1)[:, index : index + 1].astype(found.dtype)), index


def test_order_statistics_on_several_threads() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).integers(-4, 4, (3, 9)).astype(float)
    x, xp = native(torch.tensor(values, requires_grad=True))
    before = torch.get_num_threads()  # 1
    try:
        torch.set_num_threads(3)  # from which on it is PyTorch that finds them
        for index in range(9):
            found = xp.order_statistic(x, index)
            assert not found.requires_grad
            assert same(found.numpy(), np.sort(values, axis=-1)[:, index : index + 1]), index
    finally:
        torch.set_num_threads(before)
