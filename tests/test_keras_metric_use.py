"""`metric="optimizer"` in `projgrad.keras`: which variables it holds for, in which models, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer, register_metric
from projgrad_backends.keras import metric as metrics
from tests.keras_values import BACKEND, NO_SCALE, SHORT, array, tensor, variable

SIMPLEX = pg.Simplex(1.0, axis=0)

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
        (lambda: optimizers.Ftrl(0.1), "Ftrl has no metric to project in, as it makes the weights of sums"),
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
    with pytest.raises(ValueError, match="its nearest point in a diagonal metric is not implemented"):
        ProjectedOptimizer(optimizers.Adam(), {"w": pg.SpectralNorm()}, metric="optimizer").build([variable(np.eye(2))])
    with pytest.raises(ValueError, match="metric='adam' is not known"):
        ProjectedOptimizer(optimizers.Adam(), {"w": SIMPLEX}, metric="adam")
