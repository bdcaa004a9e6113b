"""The training of `simplex.py` in JAX and optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import projgrad as pg
from projgrad.optax import projected, spg


def train(likelihoods: np.ndarray, optimizer: str, way: str, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The losses before every step, and the weights after the last one; the rate goes down to 0."""
    with jax.enable_x64(True):
        data, count, free = jnp.asarray(likelihoods), likelihoods.shape[1], way == "softmax"
        start = {"weights": jnp.full(count, 0.0 if free else 1 / count)}  # on the simplex

        def weights(params: dict[str, jax.Array]) -> jax.Array:
            return jax.nn.softmax(params["weights"]) if free else params["weights"]

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            return -jnp.log(data @ weights(params)).mean()

        rules = {"weights": pg.Simplex()}
        if optimizer == "spg":
            tx: Any = spg(rules)
        else:
            plain = {"sgd": optax.sgd, "adam": optax.adam}[optimizer](optax.linear_schedule(rate, rate * 1e-6, steps))
            tx = optax.with_extra_args_support(plain if free else projected(plain, rules, metric=way))

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(params, updates), state), value

        run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps))
        (params, _), losses = run(start)
        return np.asarray(losses), np.asarray(weights(params))
