"""What `projgrad.optax.report` shows of parameters, and what a projection records in the optimizer's state."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po
from tests.optax_tree import params, same

RULES = {"*/kernel": pg.MaxNorm(1.0, axis=0)}
KERNELS = {"one": {"kernel": True, "bias": False}, "two": {"kernel": True, "bias": False}}
START = po.project_params(params(), RULES)
GRADS = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), START)
SGD = optax.sgd(1.0)


def by_hand(p, g):
    """The kernel after a step of SGD and its projection, the largest violation before that, and how far it moved."""
    z = np.asarray(p, np.float64) - np.asarray(g, np.float64)
    norms = np.linalg.norm(z, axis=0)
    y = z / np.maximum(norms, 1)
    return y, max(norms.max() - 1, 0), np.linalg.norm(y - z)


def recording(rules=RULES):
    return po.project(rules, record=True)


def one_of(name):
    return optax.chain(SGD, recording({f"{name}/kernel": RULES["*/kernel"]}))


PLACES: dict[str, Any] = {
    "chain": lambda: optax.chain(SGD, recording()),
    "projected": lambda: po.projected(SGD, RULES, record=True),
    "masked": lambda: optax.chain(SGD, optax.masked(recording(), KERNELS)),
    "partition": lambda: optax.partition({n: one_of(n) for n in START}, {n: n for n in START}),
    "inject": lambda: optax.inject_hyperparams(
        lambda learning_rate: po.projected(optax.sgd(learning_rate), RULES, record=True)
    )(learning_rate=1.0),
    "MultiSteps": lambda: optax.MultiSteps(PLACES["chain"](), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(PLACES["chain"](), 3),
}


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx, p, state, grads):
    updates, state = tx.update(grads, state, p)
    return optax.apply_updates(p, updates), state


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


@pytest.mark.parametrize("place", PLACES)
def test_the_report_finds_what_the_last_projection_did_wherever_its_state_is(place):
    tx = PLACES[place]()
    p, state = copied(START), tx.init(START)
    tx = tx.gradient_transformation() if place == "MultiSteps" else tx
    assert all(row.before is None is row.moved for row in po.report(p, RULES, state=state))
    for _ in range(2 if place == "MultiSteps" else 1):
        p, state = step(tx, p, state, GRADS)
    rows = po.report(p, RULES, state=state).to_dict()
    for layer in START:
        y, before, moved = by_hand(START[layer]["kernel"], GRADS[layer]["kernel"])
        row = rows[f"{layer}/kernel"]
        np.testing.assert_allclose(p[layer]["kernel"], y, rtol=1e-5)
        assert before > 0.1
        np.testing.assert_allclose([row["before"], row["moved"]], [before, moved], rtol=1e-5)
        assert rows[f"{layer}/bias"]["before"] is None


def test_every_parameter_is_listed_the_forgotten_ones_too():
    report = po.report(START, {"one/kernel": pg.UnitNorm(axis=0)})
    assert [row.name for row in report] == ["one/bias", "one/kernel", "two/bias", "two/kernel"]
    assert [row.constraint for row in report] == [None, "UnitNorm(axis=0)", None, None]
    norms = np.linalg.norm(START["one"]["kernel"], axis=0)
    row = report[1]
    assert (row.shape, row.groups, row.on_boundary, row.finite) == ((4, 3), 3, 1.0, True)
    np.testing.assert_allclose(row.norms, (norms.min(), norms.max()), rtol=1e-6)
    np.testing.assert_allclose(row.violation, abs(norms - 1).max(), atol=1e-6)


def test_one_set_over_several_parameters_is_one_row():
    rules = {"*/bias": pg.Joint(pg.MaxNorm(0.1, axis=None))}
    tx = po.projected(SGD, rules, record=True)
    _, state = tx.update(GRADS, tx.init(START), START)
    report = po.report(START, rules, state=state)
    assert [row.name for row in report] == ["one/bias + two/bias", "one/kernel", "two/kernel"]
    z = np.concatenate([np.asarray(START[layer]["bias"] - 0.5) for layer in ("one", "two")])
    np.testing.assert_allclose([report[0].before, report[0].moved], np.linalg.norm(z) - 0.1, rtol=1e-5)


def test_the_record_changes_no_update_and_without_it_the_state_is_as_before():
    plain, told = optax.chain(SGD, po.project(RULES)), PLACES["chain"]()
    assert plain.init(START)[1] == optax.EmptyState()
    assert same(plain.update(GRADS, plain.init(START), START)[0], told.update(GRADS, told.init(START), START)[0])


def test_a_scan_over_steps_and_a_vmap_over_models_record_the_same():
    tx = PLACES["chain"]()

    def advance(carried, g):
        p, state = carried
        updates, state = tx.update(jax.tree.map(lambda x: g * jnp.ones_like(x), p), state, p)
        return (optax.apply_updates(p, updates), state), None

    sizes = jnp.asarray([0.5, -0.25, 1.0])
    alone = [(START, tx.init(START)), (params(seed=1), tx.init(START))]
    both = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    both, _ = jax.jit(jax.vmap(lambda c: jax.lax.scan(advance, c, sizes)))(both)
    for i, carried in enumerate(alone):
        for g in sizes:
            carried, _ = advance(carried, g)
        mine = jax.tree.map(lambda x, i=i: x[i], both)
        expected, found = (po.report(p, RULES, state=s).scalars() for p, s in (carried, mine))
        assert {"one/kernel/before", "two/kernel/moved"} <= set(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-6)
        assert found.keys() == expected.keys()


def test_what_is_not_due_keeps_its_last_record_and_schedules_know_their_step():
    rules = {"*/kernel": pg.Tag(pg.MaxNorm(pg.Schedule({0: 3.0, 4: 1.0}), axis=0), every=2)}
    tx = po.projected(SGD, rules, record=True)
    p, state, seen = copied(START), tx.init(START), []
    for _ in range(3):
        outside = p["one"]["kernel"] - 2.0
        p, state = step(tx, p, state, jax.tree.map(lambda x: jnp.full(x.shape, 2.0), p))
        seen.append(po.report(p, rules, state=state).to_dict()["one/kernel"])
    assert seen[0]["before"] is None
    assert seen[1]["before"] == seen[2]["before"] > 0
    radius = 3 - 2 * 3 / 4
    norms = np.linalg.norm(np.asarray(outside), axis=0)
    np.testing.assert_allclose(seen[2]["violation"], norms.max() - radius, rtol=1e-5)
    assert seen[1]["violation"] < 1e-6


def test_a_state_without_a_record_is_an_error():
    with pytest.raises(ValueError, match="record=True"):
        po.report(START, RULES, state=optax.adam(0.1).init(START))


def waited_for(function, *given):
    found = jax.jit(function)(*given)
    jax.effects_barrier()
    return found


BAD = {"one": GRADS["one"], "two": {**GRADS["two"], "bias": jnp.asarray([0.0, jnp.inf])}}


def test_a_parameter_that_is_not_finite_is_named_by_the_report_and_by_a_warning_of_compiled_code():
    tx = optax.chain(SGD, po.project(RULES, nonfinite="warn"))
    state, grads = tx.init(START), jax.tree.map(lambda *x: jnp.stack(x), GRADS, BAD)

    def two_steps(p, s):
        return jax.lax.scan(lambda c, g: (step(tx, *c, g), None), (p, s), grads)[0][0]

    with pytest.warns(RuntimeWarning, match="after a step: two/bias$") as told:
        p = waited_for(two_steps, START, state)
    assert len(told) == 1
    assert [row.name for row in po.report(p, RULES) if not row.finite] == ["two/bias"]


@pytest.mark.parametrize("make", [po.project, partial(po.projected, SGD)])
def test_an_error_from_compiled_code_is_refused(make):
    with pytest.raises(ValueError, match="checkify"):
        make(RULES, nonfinite="raise")


def test_the_numbers_reach_tensorboard_through_the_writer_of_flax(tmp_path):
    pytest.importorskip("tensorflow")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("flax.metrics.tensorboard").SummaryWriter(tmp_path)
    scalars = po.report(START, RULES).scalars()
    for name, value in scalars.items():
        writer.scalar(name, value, step=7)
    writer.close()
    read = events.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    read.Reload()
    assert set(read.Tags()["tensors"]) == set(scalars)
    (event,) = read.Tensors("one/kernel/norm_max")
    assert event.step == 7
    value = pytest.importorskip("tensorboard.util.tensor_util").make_ndarray(event.tensor_proto)
    np.testing.assert_allclose(value, scalars["one/kernel/norm_max"], rtol=1e-6)


def test_nnx_and_equinox_models_and_train_states_are_taken_as_they_are():
    pytest.importorskip("flax.nnx")
    from flax import nnx
    from flax.training.train_state import TrainState

    train = TrainState.create(apply_fn=None, params=START, tx=PLACES["chain"]()).apply_gradients(grads=GRADS)
    _, before, moved = by_hand(START["one"]["kernel"], GRADS["one"]["kernel"])
    row = po.report(train.params, RULES, state=train).to_dict()["one/kernel"]
    np.testing.assert_allclose([row["before"], row["moved"]], [before, moved], rtol=1e-5)

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    model.kernel[...] = START["one"]["kernel"]
    optimizer = nnx.Optimizer(model, optax.chain(SGD, recording({"kernel": pg.MaxNorm(1.0)})), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: 0.5 * m.kernel[...].sum())(model))
    report = po.report(model, {nnx.Linear: {"kernel": pg.MaxNorm(1.0)}}, state=optimizer)
    assert [row.name for row in report] == ["bias", "kernel"]
    np.testing.assert_allclose([report[1].before, report[1].moved], [before, moved], rtol=1e-5)
