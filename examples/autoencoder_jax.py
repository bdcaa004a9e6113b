"""The trainings of `autoencoder.py` in JAX and optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from projgrad.optax import project_params, projected


class Training:
    """One autoencoder and its optimizer; several steps are one compiled call."""

    def __init__(self, weights: dict[str, np.ndarray], case: Any, penalty: float, rate: float = 2e-3) -> None:
        params, adam = {name: jnp.asarray(array) for name, array in weights.items()}, optax.adam(rate)
        tx: optax.GradientTransformation = adam
        if case.tag is not None:  # projgrad: one line, and one for the start, which optax cannot change
            tx = projected(adam, {"decoder": case.tag})
            params = project_params(params, {"decoder": case.tag})

        def loss(params, batch):
            codes = jax.nn.relu((batch - params["offset"]) @ params["encoder"].T + params["bias"])
            output = codes @ params["decoder"] + params["offset"]
            sizes = codes @ jnp.linalg.norm(params["decoder"], axis=1) if case.weighted else codes.sum(axis=1)
            return jnp.mean(jnp.sum((output - batch) ** 2, axis=1) + penalty * sizes)

        def step(carry, batch):
            params, state = carry
            gradient = jax.grad(loss)(params, batch)
            if case.by_hand:
                atoms, g = params["decoder"], gradient["decoder"]
                gradient = gradient | {"decoder": g - jnp.sum(g * atoms, axis=1, keepdims=True) * atoms}
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            if case.by_hand:
                atoms = params["decoder"]
                params = params | {"decoder": atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)}
            return (params, state), None

        self.steps = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0])
        self.carry = params, tx.init(params)

    def advance(self, batches: np.ndarray) -> None:
        """One step per batch."""
        self.carry = jax.block_until_ready(self.steps(self.carry, batches))

    def weights(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(array) for name, array in self.carry[0].items()}
