"""A run that is resumed from a checkpoint of orbax goes on bit for bit as if it had not stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("equinox")
pytest.importorskip("flax.nnx")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

import projgrad as pg
import projgrad.optax as po
from tests.integrations.processes import killed

RULES: dict[str, Any] = {
    "first": pg.MaxNorm(pg.Schedule({0: 0.3, 40: 1.0}), axis=0, rate=0.5).every(2),
    "second": pg.Tag(pg.Simplex(axis=0), metric="optimizer", every=3),
    "bias": pg.NonNeg(),
}


def loss(params: Any, key: Any) -> Any:
    x, y = (jax.random.normal(k, (8, n)) for k, n in zip(jax.random.split(key), (6, 2), strict=True))
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] + params["bias"] - y) ** 2)


TX = optax.MultiSteps(po.projected(optax.adam(optax.cosine_decay_schedule(0.1, 100)), RULES), 2)


def start() -> TrainState:
    keys = jax.random.split(jax.random.key(0))
    params = {
        "first": jax.random.normal(keys[0], (6, 4)),
        "second": jax.random.normal(keys[1], (4, 2)),
        "bias": -jnp.ones(2),
    }
    return TrainState.create(apply_fn=loss, params=po.project_params(params, RULES, step=0), tx=TX)


@jax.jit
def step(state: TrainState) -> TrainState:
    grads = jax.grad(loss)(state.params, jax.random.fold_in(jax.random.key(1), state.step))
    return state.apply_gradients(grads=grads)


def train(state: TrainState, until: int) -> TrainState:
    while int(state.step) < until:
        state = step(state)
    return state


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def restored(folder: Path, like: Any) -> Any:
    """What was saved, into a state that is made anew."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, jax.eval_shape(lambda: like))


def saved(folder: Path, state: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
    return folder


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(start(), 20)
    state = start()
    for stop in (0, 5, 12):  # in the middle of an accumulation, and of an `every`
        state = restored(saved(tmp_path / str(stop), train(state, stop)), start())
    assert same(train(state, 20), whole)
    rules = {name: RULES[name] for name in ("second", "bias")}
    po.audit(train(start(), 18).params, rules)  # 9 real steps
    with pytest.raises(ValueError, match="outside of their sets: second"):
        po.audit(train(start(), 16).params, rules)


def test_a_checkpoint_of_other_weights_is_told_to_lie_outside(tmp_path: Path) -> None:
    rules = {"first": pg.MaxNorm(0.3, axis=0)}
    folder = saved(tmp_path / "params", {"first": jnp.ones((6, 4))})
    params = restored(folder, {"first": jnp.zeros((6, 4))})
    with pytest.raises(ValueError, match="first is 2.15 away from MaxNorm"):
        po.audit(params, rules)
    po.audit(po.project_params(params, rules), rules)


# -- modules --------------------------------------------------------------------------------------------------------


def test_a_module_of_nnx_and_its_optimizer_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    rules = {"kernel": pg.MaxNorm(pg.Schedule({0: 0.3, 9: 0.1})).every(2)}

    def make() -> Any:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        po.project_params(model, rules, step=0)
        return model, nnx.Optimizer(model, po.projected(optax.adam(0.1), rules, model=model), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(model, nnx.grad(lambda m: jnp.sum((m(jnp.ones((4, 3))) - 5) ** 2))(model))

    whole, part = make(), make()
    for _ in range(6):
        step(*whole)
    for _ in range(3):
        step(*part)
    folder = saved(tmp_path / "nnx", nnx.to_pure_dict(nnx.state(part)))
    again = make()
    state = nnx.state(again)
    nnx.replace_by_pure_dict(state, restored(folder, nnx.to_pure_dict(state)))
    nnx.update(again, state)
    for _ in range(3):
        step(*again)
    np.testing.assert_array_equal(again[0].kernel[...], whole[0].kernel[...])
    norms = np.linalg.norm(whole[0].kernel[...], axis=0)
    np.testing.assert_allclose(norms, pg.Schedule({0: 0.3, 9: 0.1}).at(6), rtol=1e-5)


def test_a_module_of_equinox_is_resumed_bit_for_bit_in_bfloat16(tmp_path: Path) -> None:
    rules = {"layers/*/weight": pg.MaxNorm(0.25).every(2)}
    tx = po.projected(optax.adam(0.01), rules)

    def make() -> Any:
        model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=jnp.bfloat16)
        model = po.project_params(model, rules)
        return model, tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        gradient = eqx.filter_grad(lambda m: jnp.sum((jax.vmap(m)(jnp.ones((4, 3), "bfloat16")) - 5) ** 2))(model)
        updates, state = tx.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    whole = part = make()
    for _ in range(6):
        whole = step(*whole)
    for _ in range(3):
        part = step(*part)
    eqx.tree_serialise_leaves(tmp_path / "model", part)
    again = eqx.tree_deserialise_leaves(tmp_path / "model", make())
    for _ in range(3):
        again = step(*again)
    assert {x.dtype.name for x in jax.tree.leaves(eqx.filter(again[0], eqx.is_array))} == {"bfloat16"}
    assert same(eqx.filter(again, eqx.is_array), eqx.filter(whole, eqx.is_array))
    assert max(po.violations(again[0], rules).values()) < 2e-3


# -- loops, models together, buffers that are given away ------------------------------------------------------------


def test_a_scan_over_steps_ends_where_the_steps_do_and_may_have_the_buffers() -> None:
    whole = train(start(), 12)
    loop = jax.jit(lambda state: jax.lax.scan(lambda s, _: (step(s), None), state, length=12)[0], donate_argnums=0)
    given = start()
    found = loop(given)
    assert given.params["first"].is_deleted()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_models_together_count_and_end_as_each_by_itself() -> None:
    def run(params: Any) -> Any:
        state = start().replace(params=po.project_params(params, RULES, step=0))
        return jax.lax.scan(lambda s, _: (step(s), None), state, length=12)[0].params

    scales = jnp.array([0.5, 1.0, 2.0])
    together = jax.jit(jax.vmap(lambda c: run(jax.tree.map(lambda p: c * p, start().params))))(scales)
    for n, scale in enumerate(scales):
        alone = jax.jit(run)(jax.tree.map(lambda p, scale=scale: scale * p, start().params))
        jax.tree.map(lambda a, b, n=n: np.testing.assert_allclose(a[n], b, atol=1e-5), together, alone)


# -- killed ---------------------------------------------------------------------------------------------------------

_CHILD = """
import sys, time
from pathlib import Path
import orbax.checkpoint as ocp
from tests.integrations.test_jax_resume import start, train
folder, end = Path(sys.argv[1]), int(sys.argv[2])
with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
    state = start()
    if manager.latest_step() is not None:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
    while int(state.step) < end:
        state = train(state, int(state.step) + 3)
        manager.save(int(state.step), args=ocp.args.StandardSave(state))
        time.sleep(0.02)
    manager.wait_until_finished()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    end = 90
    command = [sys.executable, "-c", _CHILD, str(tmp_path), str(end)]
    killed(
        command,
        lambda: max((int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()), default=None),
        patience=300,
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        found = manager.restore(end, args=ocp.args.StandardRestore(start()))
    assert same(found, train(start(), end))
