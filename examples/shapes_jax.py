"""The network of `shapes.py` in JAX and optax; all seeds train at once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from projgrad.optax import project_params, projected, violations

Predict = Callable[[np.ndarray], np.ndarray]
Weights = dict[str, list[jax.Array]]


def network(key: jax.Array, features: int, width: int) -> Weights:
    """The weights: as PyTorch's layers start, uniform up to the inverse root of what enters."""
    keys = iter(jax.random.split(key, 8))

    def uniform(*shape: int, entering: int) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=-(entering**-0.5), maxval=entering**-0.5)

    sizes = (width, width, 1)
    return {
        "inputs": [uniform(size, features, entering=features) for size in sizes],
        "biases": [uniform(size, entering=features) for size in sizes],
        "passes": [uniform(size, width, entering=width) for size in sizes[1:]],
    }


@partial(jax.jit, static_argnames="activation")
def apply(params: Weights, x: jax.Array, activation: str) -> jax.Array:
    """Each layer gets what the last one made and, past it, the inputs: ``U z + W x + b``."""
    first, second, last = (x @ weight.T + bias for weight, bias in zip(params["inputs"], params["biases"], strict=True))
    bend = ACTIVATIONS[activation]
    z = bend(first)
    z = bend(z @ params["passes"][0].T + second)
    return (z @ params["passes"][1].T + last)[..., 0]


def mixed(z: jax.Array) -> jax.Array:
    """Half of the units ReLU, which is convex; half its reflection, which is concave. Both rise."""
    one, other = jnp.split(z, 2, axis=-1)
    return jnp.concatenate([jax.nn.relu(one), -jax.nn.relu(-other)], axis=-1)


ACTIVATIONS = {"mixed": mixed, "relu": jax.nn.relu}


@partial(jax.jit, static_argnames=("rules", "activation", "steps", "width"))
def train(
    x: jax.Array, y: jax.Array, decay: float, *, rules: tuple, activation: str, steps: int, width: int
) -> Weights:
    """The weights of networks for inputs (networks, samples, features) and targets (networks, samples)."""
    tx = optax.chain(optax.add_decayed_weights(decay), optax.adam(0.01))
    if rules:  # such as (("passes*", pg.NonNeg()),)
        tx = projected(tx, dict(rules))

    def one(seed: jax.Array, x: jax.Array, y: jax.Array) -> Weights:
        params = network(jax.random.key(seed), x.shape[1], width)
        if rules:
            params = project_params(params, dict(rules))  # optax cannot change where the parameters start

        def loss(params: Weights) -> jax.Array:
            return jnp.mean((apply(params, x, activation) - y) ** 2)

        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params

    return jax.vmap(one)(jnp.arange(len(x)), x, y)


def fit(
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    rules: dict,
    activation: str,
    steps: int,
    tick: Callable[[int], object],
    decay: float = 0.0,
    width: int = 32,
) -> list[Predict]:
    """Train a network for every (inputs, targets), of equal sizes; return the functions that they are."""
    x, y = (jnp.asarray(np.stack(arrays), jnp.float32) for arrays in zip(*runs, strict=True))
    trained = train(x, y, decay, rules=tuple(rules.items()), activation=activation, steps=steps, width=width)
    tick(steps)

    def function(seed: int) -> Predict:
        params = jax.tree.map(operator.itemgetter(seed), trained)
        assert not rules or max(violations(params, rules).values()) == 0
        return lambda x: np.asarray(apply(params, jnp.asarray(x, jnp.float32), activation), dtype=float)

    return [function(seed) for seed in range(len(runs))]
