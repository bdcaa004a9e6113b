"""Models that change: LoRA, quantized and frozen layers, layers added later, and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import layers, optimizers

from projgrad.keras import ProjectedOptimizer, audit, constrain, project_params, violations
from tests.integrations.keras_runs import BALL, X, Y, array, network, same, train

EAGERLY = keras.backend.backend() != "jax"  # which is quick in a few small steps
RULES = {"*kernel": pg.MaxNorm(BALL, axis=0)}
WITHOUT = {"*kernel": pg.MaxNorm(BALL, axis=0), "hidden/kernel": None}


def compiled(model: Any, rules: Any = RULES, *, knows: bool = True) -> Any:
    model.compile(
        ProjectedOptimizer(optimizers.Adam(0.05), rules, model=model if knows else None), "mse", run_eagerly=EAGERLY
    )
    return model


def lora(model: Any) -> None:
    model.layers[0].enable_lora(2)


def quantize(model: Any) -> None:
    model.layers[0].quantize("int8")


NEW = "recreate a new optimizer|wrap a new one"  # as Keras says it, or projgrad
CHANGES = {lora: "enable_lora", quantize: "quantized"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kernel_that_is_no_longer_what_the_layer_computes_with_is_refused(change: Any, when: str) -> None:
    model = network()
    if when == "before":
        change(model)
        for act in (audit, violations, project_params):
            with pytest.raises(ValueError, match=rf"hidden/kernel: .*{CHANGES[change]}.*None rule"):
                act(model, RULES)
    with pytest.raises(ValueError, match=rf"hidden/kernel: .*{CHANGES[change]}.*None rule"):  # noqa: PT012
        compiled(model)
        change(model)
        model.optimizer.build(model.trainable_variables)
    compiled(model, WITHOUT)
    train(model, 2)
    assert max(violations(model, WITHOUT).values()) < 1e-6


def test_lora_is_noticed_without_the_model_too() -> None:
    model = network()
    lora(model)
    with pytest.raises(ValueError, match="hidden/kernel: enable_lora"):
        train(compiled(model, knows=False), 1)
    train(compiled(model, WITHOUT, knows=False), 1)


def test_lora_and_constraints_on_the_layer_exclude_each_other() -> None:
    model = network()
    lora(model)
    with pytest.raises(ValueError, match="hidden: kernel: enable_lora"):
        constrain(model.layers[0], kernel=pg.MaxNorm(BALL))
    assert model.layers[0].kernel_constraint is None
    other = constrain(network().layers[0], kernel=pg.MaxNorm(BALL))
    with pytest.raises(ValueError, match="incompatible with kernel constraints"):
        other.enable_lora(2)


def test_lora_of_an_embedding_is_refused_too() -> None:
    embedding = layers.Embedding(5, 3)
    embedding.build((None,))
    embedding.enable_lora(2)
    with pytest.raises(ValueError, match="embeddings: enable_lora"):
        violations(embedding, {"embeddings": pg.UnitNorm()})


@pytest.mark.parametrize("change", [lora, lambda model: model.add(layers.Dense(2))])
def test_what_is_added_after_the_first_step_needs_a_new_optimizer(change: Any) -> None:
    model = train(compiled(network()), 1)
    change(model)
    model.compile(model.optimizer, "mse", run_eagerly=EAGERLY)
    with pytest.raises(ValueError, match=NEW):
        train(model, 1)


def test_layers_that_are_added_after_wrapping_are_constrained_too() -> None:
    model = compiled(network())
    model.add(layers.Dense(2, name="late"))
    assert np.linalg.norm(array(model.layers[-1].kernel), axis=0).min() > BALL
    assert len(model.optimizer.plan) == len(model.optimizer.get_config()["plan"]["entries"]) == 3
    train(model, 2)
    assert [entry.name for entry in model.optimizer.plan] == ["hidden/kernel", "out/kernel", "late/kernel"]
    assert max(violations(model, RULES).values()) < 1e-6


def test_a_layer_that_is_frozen_is_refused_or_left_as_it_is() -> None:
    model = network()
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match=r"hidden/kernel cannot stay constrained.*make them trainable"):
        train(compiled(model), 1)
    model.layers[0].trainable = True
    train(compiled(model), 2)
    kernel = array(model.layers[0].kernel).copy()
    if keras.backend.backend() != "jax":  # where Keras wants all that the optimizer was built with
        model.layers[0].trainable = False
        model.compile(model.optimizer, "mse", run_eagerly=EAGERLY)
        train(model, 2)
        np.testing.assert_array_equal(array(model.layers[0].kernel), kernel)
        audit(model, RULES)
        model.layers[0].trainable = True
        model.compile(model.optimizer, "mse", run_eagerly=EAGERLY)
    train(model, 2)
    assert not np.array_equal(array(model.layers[0].kernel), kernel)
    audit(model, RULES)
    if keras.backend.backend() == "jax":
        model.layers[0].trainable = False
        model.compile(model.optimizer, "mse", run_eagerly=EAGERLY)
        with pytest.raises(ValueError, match="other variables than these: wrap a new one"):
            train(model, 1)


def test_a_clone_is_constrained_by_an_optimizer_of_its_own() -> None:
    model = train(compiled(network()), 2)
    clone = keras.models.clone_model(model)
    again = keras.Sequential.from_config(model.get_config())
    again.compile(ProjectedOptimizer.from_config(model.optimizer.get_config()), "mse", run_eagerly=EAGERLY)
    again.optimizer.build(again.trainable_variables)
    for other in (clone, again):
        assert other.optimizer is not model.optimizer
        other.set_weights([10 * array(w) for w in model.weights])
        before = [array(w).copy() for w in model.weights]
        train(other, 2)
        audit(other, RULES)
        assert other.optimizer.plan == model.optimizer.plan
        for x, w in zip(before, model.weights, strict=True):
            np.testing.assert_array_equal(x, array(w))
    assert same(clone, again)
    clone.compile(model.optimizer, "mse")
    with pytest.raises(ValueError, match=NEW):
        clone.fit(X, Y, verbose=0)
