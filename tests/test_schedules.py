"""Numbers that change with the step."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests.frameworks import FRAMEWORKS, Framework
from tests.steppers import every_wrapper, same_steps

RADIUS = pg.Schedule({2: 3.0, 4: 1.0, 10: 2.0})
NO_NUMBER: Any = pg.Schedule({0: 1})
X = np.random.default_rng(0).normal(size=(5, 3)) * 3


def test_it_is_linear_between_the_steps_and_constant_beyond() -> None:
    steps, values = [0, 2, 3, 4, 7, 10, 99], [3.0, 3.0, 2.0, 1.0, 1.5, 2.0, 2.0]
    assert [RADIUS.at(step) for step in steps] == values
    assert [float(RADIUS.at(np.asarray(step), "float64")) for step in steps] == values
    assert pg.Schedule({0: 0.3, 7: 0.1}).at(7) == 0.1


def test_it_can_be_shown_saved_and_compared() -> None:
    ball = pg.MaxNorm(RADIUS, axis=1, rate=pg.Schedule({0: 0.5, 10: 1.0}))
    for same in (
        eval(repr(ball), vars(pg)),
        pg.from_dict(json.loads(json.dumps(ball.to_dict()))),
        copy.deepcopy(ball),
        pickle.loads(pickle.dumps(ball)),
    ):
        assert same == ball
        assert hash(same) == hash(ball)
        assert same.scheduled
    assert ball != pg.MaxNorm(RADIUS, axis=1)
    assert ball.relaxed(0.5).rate == pg.Schedule({0: 0.25, 10: 0.5})
    assert pg.MaxNorm(1.0).relaxed(RADIUS * 0.25).rate == RADIUS * 0.25


def test_a_constraint_at_a_step_has_plain_numbers() -> None:
    assert pg.MaxNorm(RADIUS, axis=1).at(3) == pg.MaxNorm(2.0, axis=1)
    assert not pg.MaxNorm(RADIUS, axis=1).at(3).scheduled
    plain = pg.MaxNorm(2.0)
    assert plain.at(3) is plain
    inside = pg.Slices([pg.MaxNorm(RADIUS, axis=1), None])
    assert inside.scheduled
    assert inside.at(3) == pg.Slices([pg.MaxNorm(2.0, axis=1), None])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pg.Schedule({}), ValueError, "must be one or more"),
        (lambda: pg.Schedule({3: 1.0, 2: 1.0}), ValueError, "increase"),
        (lambda: pg.Schedule({-1: 1.0}), ValueError, "from 0 on"),
        (lambda: pg.Schedule({0: float("nan")}), ValueError, "at step 0, must be finite"),
        (lambda: pg.Schedule({0.5: 1.0}), TypeError, "the step 0.5 is not an int"),
        (lambda: pg.Schedule({0: "1"}), TypeError, "not a number"),
        (lambda: pg.Schedule(3.0), TypeError, "not a mapping"),
        (lambda: pg.MaxNorm(pg.Schedule({0: 1.0, 9: -1.0})), ValueError, r"at least 0.*\(at step 9 of its schedule\)"),
        (lambda: pg.UnitNorm(rate=pg.Schedule({0: 0.0, 9: 1.0})), ValueError, r"rate=0.0.*at step 0"),
        (lambda: pg.MinMaxNorm(pg.Schedule({0: 0.5, 9: 2.0}), 1.0), ValueError, "above max_value=1.0.*at step 9"),
        (lambda: pg.Box(0.0, pg.Schedule({0: 1.0, 9: -1.0})), ValueError, "must not exceed.*at step 9"),
        (lambda: pg.UnitNorm(axis=NO_NUMBER), TypeError, "axis=1.0 is not an int"),
    ],
)
def test_every_value_is_checked(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_needs_a_step_says_so() -> None:
    ball = pg.MaxNorm(RADIUS, axis=1)
    for ask in (ball, ball.project, ball.violation, ball.contains):
        with pytest.raises(ValueError, match=r"changes with the step.*project\(x, step=0\)"):
            ask(X)
    assert pg.MaxNorm(1.0, axis=1).contains(ball.project(X, step=4))
    assert ball.contains(ball.project(X, step=4), step=4)
    np.testing.assert_allclose(ball.violation(X, step=4), pg.MaxNorm(1.0, axis=1).violation(X))


def test_a_size_that_does_not_fit_is_found_at_every_step() -> None:
    checked: list[Any] = []

    class Watched(pg.MaxNorm):
        def check_shape(self, shape: tuple[int, ...]) -> None:
            checked.append(self.max_value)

    Watched(RADIUS, axis=1).check_shape((2, 2))
    assert checked == [3.0, 1.0, 2.0]


CHANGING = [
    pg.MaxNorm(RADIUS, axis=1),
    pg.UnitNorm(axis=1, rate=pg.Schedule({0: 0.25, 4: 1.0})),
    pg.MinMaxNorm(pg.Schedule({0: 0.0, 10: 4.0}), 5.0, axis=0),
    pg.MinMaxNorm(pg.Schedule({0: 1.0, 10: 2.0}), pg.Schedule({0: 1.0, 10: 2.0}), axis=0),
    pg.Box(pg.Schedule({0: -1.0, 10: 0.0}), 0.5, rate=pg.Schedule({0: 0.5, 4: 1.0})),
    pg.Simplex(RADIUS),
    pg.Slices([pg.MaxNorm(RADIUS, axis=1), pg.Box(-1.0, RADIUS), None], along=1),
]
INTERSECTIONS = [
    pg.MaxNorm(RADIUS, axis=1) & pg.NonNeg(),
    pg.MaxNorm(RADIUS, axis=1) & pg.Halfspace([1.0, 2.0, 3.0], 0.5),
    pg.MaxNorm(RADIUS, axis=1) & pg.Box(-1.0, RADIUS),
    pg.MaxNorm(RADIUS, axis=1) & pg.MaxNorm(1.5, axis=0),
]


TRIED = [("float32", c) for c in CHANGING + INTERSECTIONS[::2]] + [
    (dtype, c) for c in CHANGING[::4] for dtype in ("bfloat16", "float64")
]
TRIED += [pytest.param("float32", c, marks=pytest.mark.slow) for c in INTERSECTIONS[1::2]]  # which compile for minutes


@pytest.mark.parametrize(("dtype", "constraint"), TRIED, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
def test_a_traced_step_gives_what_a_number_gives(framework: Framework, dtype: str, constraint: Any) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    values = np.concatenate([X, -np.zeros((1, 3)), 0.01 * X[:1]])
    with framework.scope():
        x = framework.make(values, dtype)
        assert framework.compile is not None

        def compiled(x: Any, step: Any) -> Any:
            return constraint.project(x, step=step), constraint.violation(x, step=step)

        # torch.compile would have to choose the method within the graph
        if framework.name != "torch" or constraint not in INTERSECTIONS:
            compiled = framework.compile(compiled)
        for step in (0, 3, 99):
            y, away = compiled(x, _as_array(framework, step))
            assert y.dtype == x.dtype
            expected = framework.read(constraint.at(step).project(x))
            tol = {"bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-12}[dtype]
            np.testing.assert_allclose(framework.read(y), expected, rtol=tol, atol=tol)
            np.testing.assert_allclose(
                framework.read(away), framework.read(constraint.violation(x, step=step)), rtol=tol, atol=30 * tol
            )


def _as_array(framework: Framework, step: int) -> Any:
    if framework.name == "jax":
        import jax.numpy as jnp

        return jnp.asarray(step)
    if framework.name == "tensorflow":
        import tensorflow as tf

        return tf.constant(step, tf.int64)
    import torch

    return torch.tensor(step)


def test_an_infinity_goes_to_its_bound_once_the_rate_is_one() -> None:
    jax = pytest.importorskip("jax")
    box = pg.Box(-1.0, 1.0, rate=pg.Schedule({0: 0.5, 9: 1.0}))
    found = jax.jit(lambda x, step: box.project(x, step=step))(np.array([np.inf, -3.0], "float32"), 9)
    np.testing.assert_array_equal(found, [1.0, -1.0])


def test_what_is_in_the_set_comes_back_bit_for_bit() -> None:
    jax = pytest.importorskip("jax")
    shell = pg.MinMaxNorm(pg.Schedule({0: 0.0, 10: 1.0}), 2.0, axis=0)
    x = np.array([[-0.0, 1.1], [-0.0, 0.3]], "float32")
    found = np.asarray(jax.jit(lambda x, step: shell.project(x, step=step))(x, 0))
    np.testing.assert_array_equal(found, x)
    assert np.signbit(found[:, 0]).all()


@every_wrapper
def test_wrappers_pass_the_number_of_steps(wrapper: str) -> None:
    ball, box = pg.MaxNorm(pg.Schedule({0: 3.0, 4: 1.0}), axis=1), pg.Box(-1.0, 1.0, rate=pg.Schedule({0: 0.5, 2: 1.0}))
    start = {"w": np.array([[3.0, 4.0], [0.1, 0.2]], "float32"), "b": np.array([-3.0, 0.5], "float32")}
    gradient = {"w": np.full((2, 2), -0.5, "float32"), "b": np.array([0.5, -0.5], "float32")}
    x = {name: v.astype("float64") for name, v in start.items()}
    expected = []
    for n in range(7):
        x = {name: v - (gradient[name] if n else 0.0) for name, v in x.items()}
        x["w"] = ball.at(n).project(x["w"]) if n % 2 == 0 else x["w"]
        x["b"] = box.at(n).project(x["b"])
        expected.append(dict(x))
    same_steps(wrapper, {"w": ball.every(2), "b": box}, start, gradient, expected)


def test_a_box_is_exact_after_its_rate_has_become_one() -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    import projgrad.optax as po

    box = pg.Box(-0.1, 0.1, rate=pg.Schedule({0: 0.5, 1: 1.0}))
    p = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    tx = po.project({"w": box})
    updates, _ = jax.jit(tx.update)({"w": jax.random.normal(jax.random.key(1), (1000,))}, tx.init(p), p)
    assert abs(optax.apply_updates(p, updates)["w"]).max() <= np.float32(0.1)


def test_project_params_wants_a_step() -> None:
    pytest.importorskip("torch")
    import torch

    from projgrad.torch import project_, project_params, violations

    params, rules = {"w": torch.ones(2, 2)}, {"w": pg.MaxNorm(RADIUS, axis=1)}
    for do in (project_params, violations):
        with pytest.raises(ValueError, match="changes with the step"):
            do(params, rules)
    with pytest.raises(ValueError, match="changes with the step"):
        project_(params["w"], rules["w"])
    assert (params["w"] == 1).all()
    project_params(params, rules, step=4)
    assert violations(params, rules, step=4)["w"] < 1e-6 < violations(params, {"w": pg.MaxNorm(0.5, axis=1)})["w"]


def test_a_bound_that_changes_is_no_cone() -> None:
    rising = pg.Monotone(lower=pg.Schedule({0: 0.0, 10: 0.5}))
    assert not rising.cone
    ball, box = rising & pg.MaxNorm(1.0, axis=-1), rising & pg.Box(0.0, 1.0)
    x = np.asarray([[0.1, 2.0, 1.5]])
    for both in (ball, box):
        found = both.project(x, step=np.asarray(10))
        np.testing.assert_allclose(found, both.at(10).project(x), atol=1e-12)
        assert found.min() >= 0.5 - 1e-12


def test_a_function_can_be_relaxed() -> None:
    half = pg.as_constraint(lambda x: x / 2).relaxed(0.5)
    np.testing.assert_allclose(half.project(X), 0.75 * X)
