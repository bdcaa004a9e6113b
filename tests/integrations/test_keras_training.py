"""What a user of Keras trains with: fit and loops of one's own, in mixed precision, with sets in rules or on layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer, audit, violations
from tests.integrations.keras_runs import BALL, X, Y, array, in_ball, network

BACKEND = keras.backend.backend()
RULES = {"hidden/kernel": pg.MaxNorm(BALL, axis=0)}
MAKE: dict[str, Any] = {
    "Adam": lambda: optimizers.Adam(0.05),
    "accumulated": lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
}


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def model_with(place: str, make: Any, **options: Any) -> Any:
    """A compiled network whose hidden kernel is constrained by rules, on its layer, or not at all."""
    model = network(kernel_constraint=RULES["hidden/kernel"] if place == "layer" else None)
    optimizer = ProjectedOptimizer(make(), RULES, model=model) if place == "rules" else make()
    model.compile(optimizer, "mse", **options)
    return model


@pytest.mark.parametrize("place", ["rules", pytest.param("layer", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "policy", "options"),
    [
        ("Adam", "float32", {"jit_compile": BACKEND != "torch"}),
        ("accumulated", "float32", {}),
        ("Adam", "mixed_float16", {}),  # which puts a LossScaleOptimizer around
        ("Adam", "mixed_bfloat16", {"steps_per_execution": 1 if BACKEND == "torch" else 2}),
    ],
    indirect=["policy"],
    ids=str,
)
def test_fit_is_the_bare_steps_and_a_projection_by_hand_after_each(
    name: str, policy: str, options: Any, place: str
) -> None:
    model, bare = model_with(place, MAKE[name], **options), model_with("", MAKE[name], run_eagerly=BACKEND != "jax")
    kernel = bare.layers[0].kernel
    if place == "rules":
        kernel.assign(in_ball(kernel))
    assert np.linalg.norm(array(model.layers[0].kernel), axis=0).min() > BALL
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for i in range(4):
        bare.train_on_batch(X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8])
        kernel.assign(in_ball(kernel))
    atol = 1e-5 if policy == "float32" else 2e-2
    for v, w in zip(model.weights, bare.weights, strict=True):
        np.testing.assert_allclose(array(v), array(w), atol=atol)
    assert max(violations(model, RULES).values()) < 1e-6
    assert str(model.layers[0].kernel.dtype) == "float32"


def gradients(model: Any) -> list[Any]:
    """As a loop of one's own computes them."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        return tape.gradient(loss, model.trainable_variables)
    if BACKEND == "torch":
        model.zero_grad()
        ((model(X) - keras.ops.convert_to_tensor(Y)) ** 2).mean().backward()
        return [v.value.grad for v in model.trainable_weights]
    import jax

    def error(values: Any) -> Any:
        return ((model.stateless_call(values, [], X)[0] - Y) ** 2).mean()

    return jax.grad(error)([v.value for v in model.trainable_variables])


@pytest.mark.parametrize("place", ["rules", "layer"])
@pytest.mark.parametrize("how", ["eager", "tf.function", "jit_compile"] if BACKEND == "tensorflow" else ["eager"])
def test_a_loop_of_ones_own(how: str, place: str) -> None:
    model, bare = model_with(place, MAKE["Adam"]), model_with("", MAKE["Adam"])

    def step() -> None:
        model.optimizer.apply(gradients(model), model.trainable_variables)

    if how != "eager":
        import tensorflow as tf

        model.optimizer.build(model.trainable_variables)
        step = tf.function(step, jit_compile=how == "jit_compile")
    kernel = bare.layers[0].kernel
    if place == "rules":
        model.optimizer.build(model.trainable_variables)
        kernel.assign(in_ball(kernel))
    for _ in range(4):
        step()
        bare.optimizer.apply(gradients(bare), bare.trainable_variables)
        kernel.assign(in_ball(kernel))
        for v, w in zip(model.weights, bare.weights, strict=True):
            np.testing.assert_allclose(array(v), array(w), atol=1e-5)


def test_averages_of_fit_lie_in_the_set_and_outside_where_only_the_layer_has_it() -> None:
    models = {}
    for place in ("rules", "layer"):
        model = model_with(place, lambda: optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))
        model.fit(X, Y, batch_size=8, verbose=0)
        models[place] = model
    audit(models["rules"], RULES)
    with pytest.raises(ValueError, match="hidden/kernel"):  # Keras constrains no averages
        audit(models["layer"])
