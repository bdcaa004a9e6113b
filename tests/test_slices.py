"""Different sets for slices of one parameter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests.frameworks import FRAMEWORKS, Framework, same
from tests.steppers import every_wrapper, same_steps

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)) * 3
X[5] = -0.0
NO_INT: Any = 0.5
PARTS: dict[Any, Any] = {(4, None): None, (0, 2): pg.UnitNorm(axis=1), (2, 3): pg.Box(-0.5, 0.5)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_each_slice_has_its_own_set(framework: Framework, dtype: str) -> None:
    if dtype not in framework.dtypes:
        pytest.skip(f"{framework} has no {dtype}")
    both = pg.Slices(PARTS)
    x = framework.make(X, dtype)
    y = framework.project(both, x)
    assert y.dtype == x.dtype
    stored, found = framework.read(x), framework.read(y)
    assert same(found[3:], stored[3:])
    for cut, part in ((slice(0, 2), PARTS[0, 2]), (slice(2, 3), PARTS[2, 3])):
        alone = framework.read(framework.project(part, framework.make(stored[cut], dtype)))
        np.testing.assert_allclose(found[cut], alone, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    assert same(framework.read(framework.project(both, y)), found)
    assert both.contains(y)
    assert not both.contains(x)
    assert both.contains(x, tol=100.0)


def test_the_violation_is_the_largest_of_each_part(framework: Framework) -> None:
    x = framework.make(X, "float64")
    found = framework.read(pg.Slices(PARTS).violation(x))
    norms = np.linalg.norm(X[:2], axis=1)
    np.testing.assert_allclose(found, [abs(norms - 1).max(), (abs(X[2]) - 0.5).max()])


def test_blocks_are_ranges_of_equal_length() -> None:
    q, k, v = pg.UnitNorm(axis=1), pg.MaxNorm(0.5, axis=1), None
    blocks, ranges = pg.Slices([q, k, v]), pg.Slices({(0, 2): q, (2, 4): k, (4, 6): v})
    assert same(blocks(X), ranges(X))
    assert blocks.bind((6, 4), (1,)) == ranges
    gates = pg.Slices([q, k], along=-1).bind((6, 4), "none")
    assert gates == pg.Slices({(0, 2): q, (2, 4): k}, along=1)
    assert gates.bind((6, 4), "none") == gates
    np.testing.assert_allclose(np.linalg.norm(gates(X)[:5, :2], axis=1), 1)


def test_slices_within_slices() -> None:
    corner = pg.Slices([pg.Slices([pg.NonNeg(), None], along=1), None])
    found = corner(X)
    assert same(found[:3, :2], np.maximum(X[:3, :2], 0.0))
    assert same(found[3:], X[3:])
    assert same(found[:3, 2:], X[:3, 2:])


def test_incoming_and_sizes_are_those_of_the_slice() -> None:
    bound = pg.Slices({(0, 2): pg.MaxNorm(1.0), (2, 6): pg.Box([[0.0]] * 4, 1.0)}).bind((6, 4), (1,))
    assert bound == pg.Slices({(0, 2): pg.MaxNorm(1.0, axis=1), (2, 6): pg.Box([[0.0]] * 4, 1.0)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pg.Slices({}), ValueError, "nothing is constrained"),
        (lambda: pg.Slices([None, None]), ValueError, "nothing is constrained"),
        (lambda: pg.Slices({(0, 4): pg.NonNeg(), (3, 5): None}), ValueError, r"\(0, 4\) and \(3, 5\) overlap"),
        (lambda: pg.Slices({(None, None): pg.NonNeg(), (3, 5): None}), ValueError, "overlap"),
        (lambda: pg.Slices({(2, 2): pg.NonNeg()}), ValueError, "stop above its start"),
        (lambda: pg.Slices({(-2, None): pg.NonNeg()}), ValueError, "count from 0"),
        (lambda: pg.Slices({3: pg.NonNeg()}), TypeError, "not a range"),
        (lambda: pg.Slices({(0.5, 1): pg.NonNeg()}), TypeError, "not made of ints"),
        (lambda: pg.Slices([pg.NonNeg(), 3]), TypeError, "neither a constraint nor a function"),
        (lambda: pg.Slices(pg.NonNeg()), TypeError, "neither a mapping"),
        (lambda: pg.Slices([pg.NonNeg()], along=NO_INT), TypeError, "not an int"),
        (lambda: pg.Slices([pg.NonNeg()] * 4).bind((6, 4), ""), ValueError, "length 6 is not made of 4 equal blocks"),
        (lambda: pg.Slices({(0, 7): pg.NonNeg()}).bind((6, 4), ""), ValueError, r"length 6.*no range \(0, 7\)"),
        (lambda: pg.Slices({(6, None): pg.NonNeg()}).bind((6, 4), ""), ValueError, "no range"),
        (lambda: pg.Slices([pg.NonNeg()], along=2).bind((6, 4), ""), ValueError, "axis 2 does not exist"),
        (lambda: pg.Slices([pg.MaxNorm(1.0)]).bind((6, 4), "no layer"), ValueError, "no layer"),
        (lambda: pg.Slices([pg.NonNeg()] * 4)(X), ValueError, "equal blocks"),
        (lambda: pg.Slices([pg.NonNeg(), None])(X.astype(complex)), TypeError, "real numbers"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_they_can_be_shown_saved_and_compared() -> None:
    for one in (pg.Slices(PARTS), pg.Slices([pg.MaxNorm(1.0), None], along=1)):
        assert pg.from_dict(json.loads(json.dumps(one.to_dict()))) == one
        assert eval(repr(one), vars(pg)) == one
        assert hash(eval(repr(one), vars(pg))) == hash(one)
    assert pg.Slices(PARTS).relaxed(0.5) == pg.Slices({k: v and v.relaxed(0.5) for k, v in PARTS.items()})
    assert pg.Slices(PARTS)(np.zeros((6, 0))).shape == (6, 0)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
def test_compiled_and_differentiated(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.compile is not None
    assert framework.gradient is not None
    both = pg.Slices(PARTS)
    with framework.scope():
        x, w = framework.make(X, "float64"), framework.make(RNG.normal(size=X.shape), "float64")
        np.testing.assert_allclose(framework.read(framework.compile(both.project)(x)), both(X), rtol=1e-12)
        found = framework.read(framework.gradient(both.project, x, w))
        assert same(found[3:], framework.read(w)[3:])
        part = framework.gradient(PARTS[0, 2].project, framework.make(X[:2], "float64"), w[:2])
        np.testing.assert_allclose(found[:2], framework.read(part), rtol=1e-12)


@every_wrapper
def test_in_every_wrapper(wrapper: str) -> None:
    start = {"w": X.astype("float32")}
    gradient = {"w": np.full(X.shape, -0.3, "float32")}
    both = pg.Slices(PARTS)
    x, expected = both(X), []
    for n in range(4):
        x = both(x - (gradient["w"] if n else 0.0))
        expected.append({"w": x})
    same_steps(wrapper, {"w": both}, start, gradient, expected)


def test_bounds_of_slices_are_exact_behind_optax() -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    import projgrad.optax as po

    box = pg.Slices({(0, 500): pg.Box(-0.1, 0.1)})
    p = po.project_params({"w": jax.random.normal(jax.random.key(0), (1000,))}, {"w": box})
    tx = po.project({"w": box})
    updates, _ = jax.jit(tx.update)({"w": jax.random.normal(jax.random.key(1), (1000,))}, tx.init(p), p)
    assert abs(optax.apply_updates(p, updates)["w"][:500]).max() <= np.float32(0.1)


def test_the_layer_tells_incoming() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer, constrain

    layer = torch.nn.MultiheadAttention(4, 1)
    constrain(layer, in_proj_weight=pg.Slices([pg.UnitNorm(), pg.UnitNorm(), None]))
    optimizer = ProjectedOptimizer(torch.optim.SGD(layer.parameters(), 0.1), model=layer)
    assert optimizer.plan[0].constraint == pg.Slices(
        {(0, 4): pg.UnitNorm(axis=1), (4, 8): pg.UnitNorm(axis=1), (8, 12): None}
    )
    norms = layer.in_proj_weight.norm(dim=1)
    assert torch.allclose(norms[:8], torch.ones(8))
    assert not torch.allclose(norms[8:], torch.ones(4))


def test_a_layer_of_keras_must_be_built_to_tell_incoming() -> None:
    keras = pytest.importorskip("keras")
    from projgrad.keras import constrain

    layer, gates = keras.layers.LSTM(2), pg.Slices([pg.UnitNorm(), None, None, None], along=1)
    with pytest.raises(ValueError, match="build it first"):
        constrain(layer, kernel=gates)
    layer.build((None, 5, 3))
    constrain(layer, kernel=gates)
    assert layer.cell.kernel_constraint.parts[0] == ((0, 2), pg.UnitNorm(axis=0))
    given = keras.layers.LSTM(2)
    constrain(given, kernel=pg.Slices([pg.UnitNorm(axis=0), None, None, None], along=1))
    model = keras.Sequential([keras.Input((5, 3)), given])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 5, 3)), np.ones((2, 2)), verbose=0)
    norms = np.linalg.norm(keras.ops.convert_to_numpy(given.cell.kernel), axis=0)
    np.testing.assert_allclose(norms[:2], 1, rtol=1e-6)
    assert (abs(norms[2:] - 1) > 1e-3).any()
