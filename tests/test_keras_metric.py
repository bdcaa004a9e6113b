"""`metric="optimizer"` in `projgrad.keras`: the metric is that of the step, on whatever backend Keras runs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer, register_metric
from projgrad_backends.keras import metric as metrics

BACKEND = keras.backend.backend()
SIMPLEX = pg.Simplex(1.0, axis=0)
STEPS = 5
SHORT = BACKEND == "torch" and "PROJGRAD_NESTED" in os.environ  # torch takes minutes for what others compile
NO_SCALE = "a LossScaleOptimizer on JAX is for stateless_apply"


def variable(values, name="w", dtype="float32"):
    return keras.Variable(np.asarray(values), dtype=dtype, name=name)


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x), dtype=np.float64)


def tensor(x):
    return keras.ops.convert_to_tensor(np.asarray(x), dtype="float32")


def gradients(shape=(6, 3), seed=0):
    """Gradients of very different sizes, of which some are always zero."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 1, shape)
    scale[0] = 0
    return [scale * rng.standard_normal(shape) for _ in range(STEPS)]


# -- the textbook -------------------------------------------------------------------------------------------------


def moving(values, decay, start=0.0):
    total = start
    for value in values:
        total = decay * total + (1 - decay) * value
    return total


def squares(gs):
    return [g**2 for g in gs]


def adam(gs, b2=0.999, eps=1e-7, corrected=False):
    correction = 1 - b2 ** len(gs) if corrected else 1.0
    return np.sqrt(moving(squares(gs), b2) / correction) + eps


def amsgrad(gs):
    return np.maximum.reduce([adam(gs[: t + 1]) for t in range(len(gs))])


def adamax(gs, b2=0.999, eps=1e-7):
    most = 0.0
    for g in gs:
        most = np.maximum(b2 * most, np.abs(g))
    return most + eps


def rmsprop(gs, rho=0.9, eps=1e-7, centred=False):
    return np.sqrt(moving(squares(gs), rho) - (moving(gs, rho) ** 2 if centred else 0) + eps)


def adadelta(gs, rho=0.95, eps=1e-7):
    seen = moved = h = 0.0
    for g in gs:
        seen = rho * seen + (1 - rho) * g**2
        h = np.sqrt(seen + eps) / np.sqrt(moved + eps)
        moved = rho * moved + (1 - rho) * (g / h) ** 2
    return h


def adafactor(gs):
    rows = columns = np.zeros(())
    for t, g in enumerate(gs, 1):
        decay = 1 - float(t) ** -0.8
        rows = decay * rows + (1 - decay) * (g**2 + 1e-30).mean(1, keepdims=True)
        columns = decay * columns + (1 - decay) * (g**2 + 1e-30).mean(0, keepdims=True)
    return np.sqrt(rows * columns / rows.mean())


BY_THE_BOOK: dict[str, tuple[Any, Any]] = {
    "adam": (lambda: optimizers.Adam(0.1), adam),
    "adam, its numbers": (lambda: optimizers.Adam(0.1, beta_2=0.9, epsilon=1e-2), partial(adam, b2=0.9, eps=1e-2)),
    "amsgrad": (lambda: optimizers.Adam(0.1, amsgrad=True), amsgrad),
    "adamw": (lambda: optimizers.AdamW(0.1), adam),
    "nadam": (lambda: optimizers.Nadam(0.1, epsilon=1e-2), partial(adam, eps=1e-2, corrected=True)),
    "lamb": (lambda: optimizers.Lamb(0.1, epsilon=1e-2), partial(adam, eps=1e-2, corrected=True)),
    "adamax": (lambda: optimizers.Adamax(0.1), adamax),
    "rmsprop": (lambda: optimizers.RMSprop(0.1, momentum=0.9), rmsprop),
    "rmsprop, centred": (
        lambda: optimizers.RMSprop(0.1, epsilon=1e-3, centered=True),
        partial(rmsprop, eps=1e-3, centred=True),
    ),
    "adagrad": (lambda: optimizers.Adagrad(0.1), lambda gs: np.sqrt(0.1 + sum(squares(gs)) + 1e-7)),
    "adadelta": (lambda: optimizers.Adadelta(100.0), adadelta),
    "adafactor": (lambda: optimizers.Adafactor(0.1), adafactor),
    "sgd": (lambda: optimizers.SGD(0.1, momentum=0.9), lambda gs: np.ones_like(gs[0])),
    "clipped": (lambda: optimizers.Adam(0.1, global_clipnorm=1e9), adam),
    "scaled": (lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.1), initial_scale=1.0), adam),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_THE_BOOK)
@pytest.mark.parametrize("way", ["apply", "stateless"])
def test_the_metric_is_that_of_the_book(name, way):
    if way == "stateless" and BACKEND == "tensorflow":
        pytest.skip("Keras has no stateless_apply on TensorFlow")
    if name == "scaled" and way == "apply" and BACKEND == "jax":
        pytest.skip(NO_SCALE)
    make, book = BY_THE_BOOK[name]
    start, gs = np.full((6, 3), 1 / 6), gradients()
    w, free = variable(start), variable(start)
    ours, plain = ProjectedOptimizer(make(), {"w": SIMPLEX}, metric="optimizer"), make()
    plain = getattr(plain, "inner_optimizer", plain)
    ours.build([w])
    plain.build([free])
    for g in gs:
        free.assign(w.value)  # what the optimizer remembers does not depend on where the weights are
        plain.apply([tensor(g)], [free])
        if way == "apply":
            ours.apply([tensor(g)], [w])
        else:
            (value,), state = ours.stateless_apply([v.value for v in ours.variables], [tensor(g)], [w.value])
            w.assign(value)
            for v, new in zip(ours.variables, state, strict=True):
                v.assign(new)
    expected = SIMPLEX.project(array(free), metric=np.maximum(np.broadcast_to(book(gs), (6, 3)), 1e-30))
    np.testing.assert_allclose(array(w), expected, rtol=2e-3, atol=2e-5)


# -- where it leads to --------------------------------------------------------------------------------------------


def quadratic(seed=0, n=20):
    """A quadratic of condition 1000 that is not aligned with the axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    scale = 10.0 ** rng.uniform(-1, 1, n)
    matrix = turn @ np.diag(np.geomspace(1, 1000, n)) @ turn.T
    matrix = (matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))) * np.outer(scale, scale)
    return matrix, 3 * rng.standard_normal(n) * scale


def minimum(matrix, vector, constraint):
    """By accelerated projected gradients, which know nothing of a metric."""
    x = y = constraint.project(np.zeros(len(vector)) + 0.01)
    step, t = 1 / np.linalg.eigvalsh(matrix)[-1], 1.0
    for _ in range(20000):
        new = constraint.project(y - step * (matrix @ y - vector))
        if (new - x) @ (y - new) > 0:
            t, y = 1.0, x
            continue
        t, was = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        x, y = new, new + (was - 1) / t * (new - x)
    return 0.5 * x @ matrix @ x - vector @ x


def settle(optimizer, start, matrix, vector, steps):
    """The point after so many compiled steps, in double precision."""
    w = variable(start, dtype="float64")
    optimizer.build([w])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        a, b = tf.constant(matrix), tf.constant(vector)

        @tf.function
        def train():
            for _ in tf.range(steps):
                optimizer.apply([tf.linalg.matvec(a, w.value) - b], [w])

        train()
    elif BACKEND == "jax":
        import jax

        def one(carry, _):
            x, state = carry
            (x,), state = optimizer.stateless_apply(state, [matrix @ x - vector], [x])
            return (x, state), None

        state = [v.value for v in optimizer.variables]
        (x, _), _ = jax.jit(lambda c: jax.lax.scan(one, c, None, steps))((w.value, state))
        return np.asarray(x)
    else:
        import torch

        a, b = torch.from_numpy(matrix), torch.from_numpy(vector)
        for _ in range(steps):
            optimizer.apply([a @ w.value.detach() - b], [w])
    return array(w)


@pytest.fixture
def double():
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.skipif(SHORT, reason="long")
@pytest.mark.parametrize("constraint", [pg.Simplex(1.0, axis=0), pg.MaxNorm(1.0, axis=0)], ids=["simplex", "ball"])
def test_adam_settles_on_the_minimum_only_in_its_own_metric(constraint, double):
    matrix, vector = quadratic()
    best = minimum(matrix, vector, constraint)
    steps = 6000

    def gap(metric):
        rate = optimizers.schedules.ExponentialDecay(0.1, steps, 1e-6)
        optimizer = ProjectedOptimizer(optimizers.Adam(rate), {"w": constraint}, metric=metric)
        x = settle(optimizer, constraint.project(np.full(len(vector), 0.01)), matrix, vector, steps)
        return (0.5 * x @ matrix @ x - vector @ x - best) / abs(best)

    assert abs(gap("optimizer")) < 1e-8
    assert gap("euclidean") > 1e-2


# -- which variables, and when ------------------------------------------------------------------------------------

SPREAD = np.asarray([1e-2, 1.0, 10.0])  # gradients that Adam scales very differently
START = [0.2, 0.3, 0.5]


def adam_without_momentum(**options):
    return optimizers.Adam(0.1, beta_1=0.0, **options)


def two_steps(optimizer, *names, steps=2, start=START):
    """The variables after two steps with gradients of different sizes."""
    variables = [variable(start, name) for name in names]
    optimizer.build(variables)
    for _ in range(steps):
        optimizer.apply([tensor(SPREAD) for _ in names], variables)
    return [array(w) for w in variables]


def ends(make=adam_without_momentum):
    """What two steps lead to in the Euclidean metric and in that of the optimizer."""
    found = [
        two_steps(ProjectedOptimizer(make(), {"w": SIMPLEX}, metric=m), "w")[0] for m in ("euclidean", "optimizer")
    ]
    assert not np.allclose(*found, atol=1e-3)
    return found


def test_a_tag_says_another_metric_than_the_wrapper():
    tags = {"a": SIMPLEX, "b": pg.Tag(SIMPLEX, metric="optimizer"), "c": pg.Tag(SIMPLEX, metric="euclidean")}
    plain, scaled = ends()
    for metric, expected in (("euclidean", (plain, scaled, plain)), ("optimizer", (scaled, scaled, plain))):
        found = two_steps(ProjectedOptimizer(adam_without_momentum(), tags, metric=metric), "a", "b", "c")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_set_over_several_variables():
    a, b = variable(START[:2], "a"), variable(START[2:], "b")
    rules = {"*": pg.Joint(pg.Simplex(axis=None))}
    optimizer = ProjectedOptimizer(adam_without_momentum(), rules, metric="optimizer")
    for _ in range(2):
        optimizer.apply([tensor(SPREAD[:2]), tensor(SPREAD[2:])], [a, b])
    np.testing.assert_allclose(np.concatenate([array(a), array(b)]), ends()[1], atol=1e-6)


def test_accumulated_gradients():
    optimizer = ProjectedOptimizer(
        adam_without_momentum(gradient_accumulation_steps=3), {"w": SIMPLEX}, metric="optimizer"
    )
    np.testing.assert_allclose(two_steps(optimizer, "w", steps=3)[0], two_steps_of_one(), atol=1e-6)
    optimizer = ProjectedOptimizer(
        adam_without_momentum(gradient_accumulation_steps=3), {"w": SIMPLEX}, metric="optimizer"
    )
    np.testing.assert_allclose(two_steps(optimizer, "w", steps=6)[0], ends()[1], atol=1e-6)


def two_steps_of_one():
    return two_steps(ProjectedOptimizer(adam_without_momentum(), {"w": SIMPLEX}, metric="optimizer"), "w", steps=1)[0]


@pytest.mark.skipif(BACKEND == "jax", reason=NO_SCALE)
def test_skipped_steps_before_the_first_leave_the_euclidean_metric():
    inner = optimizers.LossScaleOptimizer(adam_without_momentum(), initial_scale=1.0)
    optimizer = ProjectedOptimizer(inner, {"w": SIMPLEX}, metric="optimizer")
    w = variable(START)
    optimizer.build([w])
    w.assign([1.0, 2.0, 0.5])
    optimizer.apply([tensor([np.inf, 1.0, 1.0])], [w])
    np.testing.assert_allclose(array(w), SIMPLEX.project(np.asarray([1.0, 2.0, 0.5])), atol=1e-6)


@pytest.mark.skipif(BACKEND == "jax", reason=NO_SCALE)
def test_inside_a_loss_scale_optimizer():
    inside = ProjectedOptimizer(adam_without_momentum(), {"w": SIMPLEX}, metric="optimizer")
    optimizer = optimizers.LossScaleOptimizer(inside, initial_scale=1.0)
    np.testing.assert_allclose(two_steps(optimizer, "w")[0], ends()[1], atol=1e-6)


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="Keras has no MultiOptimizer")
def test_several_optimizers_in_one():
    parts = {"a": adam_without_momentum(), "b": optimizers.SGD(0.01)}
    inner = optimizers.MultiOptimizer(lambda v: parts[v.name])
    found = two_steps(ProjectedOptimizer(inner, {"*": SIMPLEX}, metric="optimizer"), "a", "b")
    np.testing.assert_allclose(found[0], ends()[1], atol=1e-6)
    plain = two_steps(ProjectedOptimizer(optimizers.SGD(0.01), {"b": SIMPLEX}), "b")[0]
    np.testing.assert_allclose(found[1], plain, atol=1e-6)
    parts = {"a": adam_without_momentum(), "b": optimizers.Lion(0.01)}
    inner = optimizers.MultiOptimizer(lambda v: parts[v.name])
    with pytest.raises(ValueError, match="Lion has no metric"):
        ProjectedOptimizer(inner, {"*": SIMPLEX}, metric="optimizer").build([variable(START, n) for n in "ab"])


def test_every_few_steps_and_a_schedule():
    rules = {"w": pg.Tag(pg.Simplex(pg.Schedule({0: 2.0, 4: 1.0}), axis=0), every=2)}
    w, sums = variable(START), []
    optimizer = ProjectedOptimizer(optimizers.Adam(0.1), rules, metric="optimizer")
    for _ in range(4):
        optimizer.apply([tensor(SPREAD)], [w])
        sums.append(float(array(w).sum()))
    np.testing.assert_allclose([sums[1], sums[3]], [1.5, 1.0], atol=1e-5)
    assert abs(sums[2] - 1.25) > 0.01


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_lower_precision(dtype):
    ball, rng = pg.MaxNorm(1.0, axis=0), np.random.default_rng(0)
    w = variable(np.full((20, 3), 0.1), dtype=dtype)
    optimizer = ProjectedOptimizer(optimizers.Adam(0.1, epsilon=1e-3), {"w": ball}, metric="optimizer")
    for _ in range(10):
        g = 10.0 ** rng.uniform(-3, 0, (20, 1)) * rng.standard_normal((20, 3))
        optimizer.apply([keras.ops.cast(tensor(g), dtype)], [w])
        norms = np.linalg.norm(array(keras.ops.cast(w, "float32")), axis=0)
        assert (norms <= 1 + 1.5 * float(pg.tolerance(dtype, 20, 1.0))).all()


# -- models -------------------------------------------------------------------------------------------------------

X, Y = np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.ones((32, 2), "float32")


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, name="hidden"), keras.layers.Dense(2, name="out")]
    )


def fitted(metric, *, make=adam_without_momentum, **options):
    model = network()
    rules = {keras.layers.Dense: {"kernel": pg.MaxNorm(0.5)}}
    model.compile(optimizer=ProjectedOptimizer(make(), rules, model=model, metric=metric), loss="mse", **options)
    model.optimizer.build(model.trainable_variables)  # or an eager model is projected only after its first gradient
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    return model


@pytest.mark.parametrize("make", [adam_without_momentum, lambda: optimizers.Adadelta(100.0)], ids=["adam", "adadelta"])
def test_compiled_and_eager_training_are_the_same(make):
    eager = fitted("optimizer", make=make, run_eagerly=True)
    for options in ({"jit_compile": False}, {"jit_compile": True})[: 1 if SHORT else 2]:
        model = fitted("optimizer", make=make, **options)
        for a, b in zip(model.weights, eager.weights, strict=True):
            np.testing.assert_allclose(array(a), array(b), atol=2e-4)
    for w in (model.layers[0].kernel, model.layers[1].kernel):
        assert (np.linalg.norm(array(w), axis=0) <= 0.5 + 1e-6).all()
    other = fitted("euclidean", make=make)
    assert not np.allclose(array(other.layers[0].kernel), array(eager.layers[0].kernel), atol=1e-3)


def test_the_metric_is_saved_with_the_model(tmp_path):
    model = fitted("optimizer")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.plan == model.optimizer.plan
    assert all(entry.in_metric for entry in loaded.optimizer.plan)
    for m in (model, loaded):
        m.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=1e-6)


def test_the_metric_is_in_the_configuration_before_the_plan_is_made():
    optimizer = ProjectedOptimizer(adam_without_momentum(), {"w": SIMPLEX}, metric="optimizer")
    again = ProjectedOptimizer.from_config(optimizer.get_config())
    np.testing.assert_allclose(two_steps(again, "w")[0], ends()[1], atol=1e-6)
    old = optimizer.get_config()
    del old["metric"]  # as it was saved before there was one
    np.testing.assert_allclose(two_steps(ProjectedOptimizer.from_config(old), "w")[0], ends()[0], atol=1e-6)


def test_a_plan_that_was_saved_without_a_metric_is_euclidean():
    optimizer = ProjectedOptimizer(adam_without_momentum(), {"w": SIMPLEX})
    optimizer.build([variable(START)])
    config = optimizer.get_config()
    for entry in config["plan"]["entries"]:
        del entry["tag"]["metric"]
    again = ProjectedOptimizer.from_config(config)
    again.build([variable(START)])
    assert again.plan == optimizer.plan


# -- what is not known --------------------------------------------------------------------------------------------


class Mine(optimizers.Optimizer):
    """An optimizer of one's own, which divides by what it has seen."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.seen = self.add_optimizer_variables(variables, "seen")

    def update_step(self, gradient, variable, learning_rate):
        seen = self.seen[self._get_variable_index(variable)]
        self.assign(seen, keras.ops.maximum(seen, keras.ops.abs(gradient)))
        self.assign_sub(variable, keras.ops.divide(keras.ops.multiply(gradient, learning_rate), seen))


class Derived(Mine):
    pass


def test_an_optimizer_of_ones_own_can_be_registered(monkeypatch):
    monkeypatch.setattr(metrics, "_known", dict(metrics._known))
    with pytest.raises(ValueError, match=r"what Mine divides.*register_metric\(Mine\)"):
        ProjectedOptimizer(Mine(0.1), {"w": SIMPLEX}, metric="optimizer").build([variable(START)])

    @register_metric(Mine)
    def scaling(optimizer, index):
        return optimizer.seen[index]

    assert scaling.__name__ == "scaling"
    expected = np.asarray(START)
    for _ in range(2):
        expected = SIMPLEX.project(expected - 0.1, metric=SPREAD)
    for make in (Mine, Derived):
        found = two_steps(ProjectedOptimizer(make(0.1), {"w": SIMPLEX}, metric="optimizer"), "w")[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    register_metric(Derived)(lambda optimizer, index: None)
    found = two_steps(ProjectedOptimizer(Derived(0.1), {"w": SIMPLEX}, metric="optimizer"), "w")[0]
    np.testing.assert_allclose(found, START, atol=1e-6)
    with pytest.raises(TypeError, match="keras.optimizers.Optimizer"):
        register_metric(Mine(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.Lion(0.1), "Lion has no metric to project in, as its steps have the sign"),
        (lambda: optimizers.Ftrl(0.1), r"what Ftrl divides .*projgrad.keras.register_metric\(Ftrl\)"),
        (lambda: optimizers.LossScaleOptimizer(optimizers.Lion(0.1)), "Lion has no metric"),
    ],
    ids=["lion", "ftrl", "scaled"],
)
def test_what_is_not_known_is_refused_at_the_start(make, message):
    model, rules = network(), {"*kernel": pg.MaxNorm(0.5, axis=0)}
    with pytest.raises(ValueError, match=message):
        ProjectedOptimizer(make(), rules, model=model, metric="optimizer")
    with pytest.raises(ValueError, match=message):
        ProjectedOptimizer(make(), rules, metric="optimizer").build(model.trainable_variables)
    ProjectedOptimizer(make(), rules, model=model)


def test_what_has_no_form_in_a_metric_is_refused():
    with pytest.raises(ValueError, match="no way is known to its nearest point"):
        ProjectedOptimizer(optimizers.Adam(), {"w": pg.SpectralNorm()}, metric="optimizer").build([variable(np.eye(2))])
    with pytest.raises(ValueError, match="metric='adam' is not known"):
        ProjectedOptimizer(optimizers.Adam(), {"w": SIMPLEX}, metric="adam")
