"""Constraints as objects: made, compared, shown, saved; users' own ones."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg

ALL = [
    pg.NonNeg(),
    pg.NonPos(rate=0.5),
    pg.Box(-1, 2),
    pg.Box(-math.inf, 0.05, rate=0.1),
    pg.Box([[0.0], [-math.inf]], [1, 2, math.inf]),
    pg.MaxNorm(),
    pg.MaxNorm(3.0, axis=(0, 1)),
    pg.UnitNorm(axis=-1),
    pg.UnitNorm(axis=None),
    pg.MinMaxNorm(0.5, math.inf, rate=0.9, axis=0),
]


@pytest.mark.parametrize("constraint", ALL, ids=str)
def test_round_trips(constraint: pg.Constraint) -> None:
    plain = json.dumps(constraint.to_dict(), allow_nan=False)
    loaded = pg.from_dict(json.loads(plain))
    pasted = eval(repr(constraint), vars(pg))
    for twin in (loaded, pasted):
        assert twin == constraint
        assert hash(twin) == hash(constraint)


def test_equality_is_by_value() -> None:
    assert pg.MaxNorm(2) == pg.MaxNorm(2.0) != pg.MaxNorm(2.0, axis=0)
    assert pg.Box([0, 1], 2) == pg.Box(np.array([0.0, 1.0]), 2.0) != pg.Box([0, 1], 3)
    assert len(set(ALL)) == len(ALL)
    with pytest.raises(FrozenInstanceError):
        pg.MaxNorm(2.0).max_value = 3.0  # type: ignore[misc]
    limits = np.array([0.0, 1.0])
    box = pg.Box(limits, 2)
    limits[0] = 5
    assert box == pg.Box([0, 1], 2)


def test_names_and_order_of_arguments_are_those_of_keras() -> None:
    assert pg.MaxNorm(2.0, 0) == pg.MaxNorm(max_value=2, axis=0)
    assert pg.UnitNorm(0) == pg.UnitNorm(axis=0)
    assert pg.MinMaxNorm(0.1, 0.9, 0.5, 1) == pg.MinMaxNorm(min_value=0.1, max_value=0.9, rate=0.5, axis=1)
    assert pg.MaxNorm() == pg.MaxNorm(2.0, axis="incoming")
    assert pg.MinMaxNorm() == pg.MinMaxNorm(0.0, 1.0, rate=1.0, axis="incoming")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.MaxNorm(-1.0), "max_value"),
        (lambda: pg.MaxNorm(math.nan), "max_value"),
        (lambda: pg.MaxNorm(math.inf), "finite"),
        (lambda: pg.MaxNorm(cast(Any, "3x")), "not a number"),
        (lambda: pg.MaxNorm(cast(Any, "2")), "not a number"),
        (lambda: pg.MaxNorm(True), "not a number"),
        (lambda: pg.MaxNorm(10**400), "finite"),
        (lambda: pg.MinMaxNorm(2.0, 1.0), "above max_value"),
        (lambda: pg.MinMaxNorm(-1.0, 1.0), "min_value"),
        (lambda: pg.MinMaxNorm(math.inf, math.inf), "min_value"),
        (lambda: pg.MaxNorm(1.0, rate=0), "rate"),
        (lambda: pg.MaxNorm(1.0, rate=1.5), "rate"),
        (lambda: pg.NonNeg(rate=-0.5), "rate"),
        (lambda: pg.NonNeg(rate=math.nan), "rate"),
        (lambda: pg.Box(1, 0), "exceed"),
        (lambda: pg.Box([0, 3], [1, 2]), "exceed"),
        (lambda: pg.Box(math.nan, 1), "NaN"),
        (lambda: pg.Box(math.inf, math.inf), "infinity"),
        (lambda: pg.Box([1, 2], [1, 2, 3]), "broadcast"),
        (lambda: pg.Box([[1, 2], [3]], 5), "lower"),
        (lambda: pg.Box("a", 5), "lower"),
        (lambda: pg.MaxNorm(1.0, axis="rows"), "incoming"),
        (lambda: pg.MaxNorm(1.0, axis=(0, 0)), "twice"),
        (lambda: pg.MaxNorm(1.0, axis=cast(Any, 1.0)), "not an int"),
        (lambda: pg.MaxNorm(1.0, axis=True), "not an int"),
        (lambda: pg.MaxNorm(1.0, axis=()), "Box"),
    ],
)
def test_what_cannot_be_is_refused_when_made(wrong: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


@pytest.mark.parametrize(
    ("constraint", "x", "error", "message"),
    [
        (pg.MaxNorm(1.0), np.ones((2, 3)), ValueError, "layer"),
        (pg.MaxNorm(1.0, axis=2), np.ones((2, 3)), ValueError, "axis 2 does not exist"),
        (pg.MaxNorm(1.0, axis=(1, -1)), np.ones((2, 3)), ValueError, "twice"),
        (pg.Box([0, 0], 1), np.ones((2, 3)), ValueError, "broadcast"),
        (pg.Box([[[0]]], 1), np.ones((2, 3)), ValueError, "broadcast"),
        (pg.NonNeg(), np.ones(3, int), TypeError, "floating-point"),
        (pg.NonNeg(), [1.0, 2.0], TypeError, "list"),
        (pg.NonNeg(), "weights", TypeError, "str"),
    ],
)
def test_what_does_not_fit_is_refused(constraint: pg.Constraint, x: Any, error: type[Exception], message: str) -> None:
    for method in (constraint.project, constraint.violation, constraint.contains):
        with pytest.raises(error, match=message):
            method(x)


def test_violation_and_contains() -> None:
    x = np.array([[3.0, 0.0], [4.0, 0.5]])
    np.testing.assert_allclose(pg.MaxNorm(2.0, axis=0).violation(x), [3, 0])
    np.testing.assert_allclose(pg.UnitNorm(axis=0).violation(x), [4, 0.5])
    np.testing.assert_allclose(pg.Box(0, 1).violation(x), [[2, 0], [3, 0]])
    assert not pg.MaxNorm(2.0, axis=0).contains(x)
    assert pg.MaxNorm(2.0, axis=0).contains(x, tol=3.0)
    assert pg.MaxNorm(5.0, axis=0).contains(x)
    # a computed norm is allowed to be off by the tolerance, not more
    assert pg.UnitNorm(axis=0).contains(np.array([1 + 1e-7], np.float32))
    assert not pg.UnitNorm(axis=0).contains(np.array([1 + 1e-6], np.float32))


@pg.register("tests.round_to_half")
def round_to_half(x: Any) -> Any:
    return (2 * x).round() / 2


@pg.register("tests.Even")
@dataclass(frozen=True)
class Even(pg.Constraint):
    """Vectors that read the same backwards: a user's own set."""

    axis: Any = 0
    rate: float = 1.0

    def solve(self, x: Any, xp: Any, metric: Any = None) -> pg.Move:
        return pg.Replace((x + xp.flip(x, axis=self.axis)) / 2, (self.axis,))


@dataclass(frozen=True)
class Unrated(pg.Constraint):
    """A set of the user's that has no options."""

    def solve(self, x: Any, xp: Any, metric: Any = None) -> pg.Move:
        return pg.Assign(xp.abs(x))


def test_a_function_can_stand_for_a_constraint() -> None:
    own = pg.as_constraint(round_to_half)
    x = np.array([0.3, 1.0, -0.8])
    np.testing.assert_array_equal(own(x), [0.5, 1, -1])
    assert own.violation(x) == pytest.approx(math.hypot(0.2, 0.2))
    assert own.contains(own(x))
    assert not own.contains(x)
    assert pg.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert pg.as_constraint(own) is own


def test_a_subclass_gets_everything() -> None:
    own: Any = Even(rate=0.5)
    x = np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    assert own(x).tolist() == [[1.5, 0], [0, 0], [2.5, 0]]
    assert list(own.violation(x)) == pytest.approx([math.sqrt(2), 0])
    assert pg.from_dict(own.to_dict()) == own
    assert own.bind((4, 2), "none") == own
    assert own.relaxed(0.5) == Even(rate=0.25)


def test_a_set_without_a_rate_is_not_relaxed() -> None:
    with pytest.raises(TypeError, match="Unrated has no field rate"):
        Unrated().relaxed(0.5)
    with pytest.raises(ValueError, match="rate"):
        Even(rate=2)


def test_what_is_not_registered_cannot_be_saved() -> None:
    own = pg.as_constraint(lambda x: x)
    with pytest.raises(ValueError, match="register"):
        own.to_dict()
    with pytest.raises(ValueError, match="no constraint is registered as 'Nope'"):
        pg.from_dict({"type": "Nope"})
    with pytest.raises(ValueError, match="no function is registered as 'nope'"):
        pg.from_dict({"type": "Function", "function": "nope"})
    with pytest.raises(ValueError, match="radius"):
        pg.from_dict({"type": "MaxNorm", "radius": 2})
    with pytest.raises(ValueError, match="type"):
        pg.from_dict({"max_value": 2})
    with pytest.raises(ValueError, match="max_value"):
        pg.from_dict({"type": "MaxNorm", "max_value": -2})


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="another name"):
        pg.register("MaxNorm")(round_to_half)
    with pytest.raises(TypeError, match="dataclass"):

        @pg.register("tests.NotADataclass")
        class NotADataclass(Even):
            def __init__(self) -> None: ...


@pytest.mark.parametrize("thing", [3, None, "MaxNorm", pg.MaxNorm])
def test_what_is_no_constraint_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError):
        pg.as_constraint(thing)


def test_a_function_that_returns_nothing_is_named() -> None:
    with pytest.raises(TypeError, match="returned NoneType"):
        pg.as_constraint(lambda x: None).project(np.ones(3))


def test_a_function_that_jitters_leaves_its_own_result_alone() -> None:
    own = pg.as_constraint(lambda x: x / np.linalg.norm(x))
    for seed in range(50):
        x = own(np.random.default_rng(seed).standard_normal(7).astype(np.float32))
        assert own.contains(x)
        assert (own(x) == x).all()


def test_arrays_in_a_constraint_stay_as_they_are() -> None:
    box = pg.Box([-0.0, 1.0], 2)
    assert hash(box) == hash(pg.Box([0.0, 1.0], 2))
    for twin in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
        assert twin == box
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(twin.lower)[0] = 5
    code = (
        "import pickle, sys, projgrad as pg; box = pickle.loads(sys.stdin.buffer.read()); "
        "print(hash(box) == hash(pg.Box([0, 1], 2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(box), capture_output=True, check=True)
    assert done.stdout.strip() == b"True"
    assert "shape (200,)" in repr(pg.Box(np.zeros(200), 1))


@pg.register("tests.Pair")
@dataclass(frozen=True)
class Pair(pg.Constraint):
    """A set with a tuple as its parameter."""

    values: tuple[float, ...] = (0.0, math.inf)

    def solve(self, x: Any, xp: Any, metric: Any = None) -> pg.Move:
        return pg.Clip(*self.values)


def test_tuples_come_back_as_tuples() -> None:
    assert pg.from_dict(json.loads(json.dumps(Pair().to_dict()))) == Pair()
    assert hash(pg.from_dict(Pair().to_dict())) == hash(Pair())
    with pytest.raises(TypeError, match="type"):

        @pg.register("tests.Typed")
        @dataclass(frozen=True)
        class Typed(Pair):
            type: str = "no"


def test_a_function_must_keep_the_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        pg.as_constraint(lambda x: x[:1]).project(np.ones(3))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", 2.0 * (2**-24 + 15 * 2**-24)), ("float16", 2.0 * (2**-11 + 15 * 2**-24) + math.sqrt(100) * 2**-25)],
)
def test_the_tolerance_is_the_stated_formula(dtype: str, expected: float) -> None:
    assert pg.tolerance(dtype, 100, 2.0) == pytest.approx(expected, rel=1e-12)


def test_incoming_axes_are_bound_to_numbers() -> None:
    assert pg.MaxNorm(1.0).bind((3, 4), (1,)) == pg.MaxNorm(1.0, axis=1)
    assert pg.MaxNorm(1.0).bind((3, 4, 5), (2, 1)) == pg.MaxNorm(1.0, axis=(1, 2))
    assert pg.MaxNorm(1.0, axis=-1).bind((3, 4), "none") == pg.MaxNorm(1.0, axis=1)
    assert pg.MaxNorm(1.0, axis=None).bind((3, 4), "none") == pg.MaxNorm(1.0, axis=None)
    assert pg.NonNeg().bind((3, 4), "none") == pg.NonNeg()
    with pytest.raises(ValueError, match="no such axes"):
        pg.MaxNorm(1.0).bind((3, 4), "no such axes")
