"""On PyTorch, Keras's variables are projected in their memory, or by way of a copy of it."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("only PyTorch changes arrays in place", allow_module_level=True)

import torch

from projgrad.keras import ProjectedOptimizer

BALL = pg.MaxNorm(0.5, axis=0)


def variables():
    rng = np.random.default_rng(0)
    shapes = [(6, 4)] * 3 + [(300, 300), (5,)]
    return [keras.Variable(rng.normal(size=shape).astype("float32"), name=f"w{i}") for i, shape in enumerate(shapes)]


def in_ball(x):
    return x * np.minimum(1.0, 0.5 / np.linalg.norm(x, axis=0))


def steps(made, rules):
    """The values before and after the second step of an optimizer that adds 1 to all."""
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), rules)
    optimizer.build(made)
    gradients = [-torch.ones_like(v.value) for v in made]
    optimizer.apply(gradients)
    before = [v.value.detach().clone().numpy() for v in made]
    optimizer.apply(gradients)
    return before, [v.value.detach().numpy() for v in made]


def test_small_and_large_variables_are_projected_in_their_memory():
    made = variables()
    places = [v.value.data_ptr() for v in made]
    before, after = steps(made, {"w[0-3]": BALL, "w4": None})
    for x, y in zip(before[:4], after[:4], strict=True):
        np.testing.assert_allclose(y, in_ball(x.astype("float64") + 1.0), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(after[4], before[4] + 1.0)
    assert [v.value.data_ptr() for v in made] == places


def test_a_constraint_on_a_layer_is_called_without_changing_what_it_is_given():
    made = variables()[0]
    x = made.value.detach().clone()
    with torch.no_grad():
        y = BALL(made)
    assert torch.equal(made.value, x)
    np.testing.assert_allclose(y.numpy(), in_ball(x.numpy().astype("float64")), rtol=2e-6)
    with torch.no_grad():
        assert torch.equal(BALL(y), y)


def test_a_constraint_is_differentiated_where_that_is_asked_for():
    x = torch.tensor([[3.0], [4.0]], requires_grad=True)
    np.testing.assert_allclose(
        torch.autograd.grad(BALL(x)[0, 0], x)[0].numpy(), 0.1 * np.array([[16 / 25], [-12 / 25]]), rtol=1e-6
    )
