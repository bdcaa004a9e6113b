"""The network of `moons.py` in JAX and optax; all seeds train at once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from projgrad.optax import project_params, projected, violations


def network(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    one, other = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_uniform()  # as Keras does
    return {
        "hidden": {"kernel": glorot(one, (2, 500)), "bias": jnp.zeros(500)},
        "output": {"kernel": glorot(other, (500, 1)), "bias": jnp.zeros(1)},
    }


def logits(params: dict, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def accuracy(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((logits(params, x) > 0) == (y > 0.5))


def train(
    data: Sequence[np.ndarray],
    rules: dict,
    seeds: int,
    chunks: Sequence[int],
    tick: Callable[[int], object],
    metric: str = "euclidean",
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], float]]:
    """Train once per seed; yield the accuracies after every chunk of epochs, the final norms and the violation."""
    train_x, train_y, test_x, test_y = map(jnp.asarray, data)
    tx: optax.GradientTransformation = optax.adam(1e-3, eps=1e-7)
    if rules:  # such as {"hidden/kernel": pg.UnitNorm()}
        tx = projected(tx, rules, metric=metric)

    def start(seed):
        params = network(jax.random.key(seed))
        if rules:
            params = project_params(params, rules)  # optax cannot change where the parameters start
        return params, tx.init(params)

    def loss(params):
        return optax.sigmoid_binary_cross_entropy(logits(params, train_x), train_y).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def advance(carry, epochs):
        carry, _ = jax.lax.scan(step, carry, length=epochs)
        params = carry[0]
        return carry, jnp.stack([accuracy(params, train_x, train_y), accuracy(params, test_x, test_y)])

    advance_all = jax.jit(jax.vmap(advance, in_axes=(0, None)), static_argnums=1)
    carry, curves = jax.vmap(start)(jnp.arange(seeds)), []
    for epochs in chunks:
        carry, now = advance_all(carry, epochs)
        curves.append(np.asarray(now))
        tick(epochs * seeds)

    for seed in range(seeds):
        params = jax.tree.map(operator.itemgetter(seed), carry[0])
        norms = {
            "hidden": np.asarray(jnp.linalg.norm(params["hidden"]["kernel"], axis=0)),
            "output": np.asarray(jnp.linalg.norm(params["output"]["kernel"], axis=0)),
            "hidden bias": np.asarray(jnp.linalg.norm(params["hidden"]["bias"], keepdims=True)),
        }
        largest = max(violations(params, rules).values(), default=0.0)
        yield np.array([now[seed] for now in curves]), norms, float(largest)
