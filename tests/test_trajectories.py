"""The same start and data give the same weights in every framework, and in Keras with its own constraint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg

STEPS, RATE = 50, 0.1
rng = np.random.default_rng(0)
X = rng.standard_normal((30, 2)).astype(np.float32)
Y = np.sign(X[:, :1] * X[:, 1:]).astype(np.float32)
KERNEL = rng.standard_normal((2, 16)).astype(np.float32)
START = [
    KERNEL / np.linalg.norm(KERNEL, axis=0),  # feasible
    np.zeros(16, np.float32),
    rng.standard_normal((16, 1)).astype(np.float32) / 4,
    np.zeros(1, np.float32),
]


def with_keras(own: bool) -> list[np.ndarray]:
    keras = pytest.importorskip("keras")
    from projgrad.keras import ProjectedOptimizer

    constraint = keras.constraints.UnitNorm(axis=0) if own else None
    hidden = keras.layers.Dense(16, activation="relu", kernel_constraint=constraint, name="hidden")
    model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1)])
    model.set_weights(START)
    sgd = keras.optimizers.SGD(RATE)
    optimizer = sgd if own else ProjectedOptimizer(sgd, {"hidden/kernel": pg.UnitNorm()}, model=model)
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(X, Y, batch_size=len(X), epochs=STEPS, verbose=0, shuffle=False)
    return [np.asarray(w) for w in model.get_weights()]


def with_torch() -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer

    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    model.load_state_dict({k: torch.from_numpy(w.T.copy()) for k, w in zip(model.state_dict(), START, strict=True)})
    sgd = torch.optim.SGD(model.parameters(), RATE)
    optimizer = ProjectedOptimizer(sgd, {"0.weight": pg.UnitNorm()}, model=model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(torch.from_numpy(X)) - torch.from_numpy(Y)).square().mean().backward()
        optimizer.step()
    return [p.detach().numpy().T for p in model.parameters()]


def with_jax() -> list[np.ndarray]:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    import projgrad.optax

    def loss(params: Any) -> Any:
        hidden = jax.nn.relu(X @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return ((hidden @ params["out"]["kernel"] + params["out"]["bias"] - Y) ** 2).mean()

    tx = optax.chain(optax.sgd(RATE), projgrad.optax.project({"hidden/kernel": pg.UnitNorm()}))
    params: Any = {"hidden": {"kernel": START[0], "bias": START[1]}, "out": {"kernel": START[2], "bias": START[3]}}
    params = jax.tree.map(jax.numpy.asarray, params)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return [np.asarray(params[layer][name]) for layer in ("hidden", "out") for name in ("kernel", "bias")]


@pytest.mark.parametrize("train", [lambda: with_keras(own=False), with_torch, with_jax], ids=["keras", "torch", "jax"])
def test_trajectories_agree_with_keras_and_its_own_constraint(train: Any) -> None:
    expected, found = with_keras(own=True), train()
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=0), 1, rtol=1e-6)
    assert np.abs(found[0] - START[0]).max() > 0.1  # it did train
