"""Every way in which Keras makes a step, against the bare optimizer and a projection by hand after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer, violations
from tests.integrations.keras_runs import RULES, Steps, X, Y, array, by_hand, network

AVERAGED = {"use_ema": True, "ema_momentum": 0.5}
ACCUMULATED = {"gradient_accumulation_steps": 3}

MAKE: dict[str, Any] = {
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: optimizers.Adam(0.1),
    "AdamW, clipped": lambda: optimizers.AdamW(0.1, weight_decay=0.1, clipnorm=1.0),
    "accumulated": lambda: optimizers.Adam(0.1, **ACCUMULATED),
    "averages": lambda: optimizers.SGD(0.1, **AVERAGED),
    "averages written back": lambda: optimizers.SGD(0.1, ema_overwrite_frequency=3, **AVERAGED),
    "loss scale inside": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)),
    "loss scale inside, accumulated": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1, **ACCUMULATED)),
    "fixed loss scale": lambda: optimizers.SGD(0.1, loss_scale_factor=64.0),
    "Muon and others": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(0.1), {"w": optimizers.Muon(0.05)})
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_step_is_the_bare_one_and_then_the_projection(name: str) -> None:
    steps = Steps(ProjectedOptimizer(MAKE[name](), Steps.rules))
    calls = 9
    for call, wanted in enumerate(by_hand(MAKE[name](), calls, 3 if "accumulated" in name else 1)):
        steps.step() if call < calls else steps.finish()
        for found, expected in zip(steps.variables, wanted.variables, strict=True):
            np.testing.assert_allclose(array(found), array(expected), atol=2e-6, rtol=2e-6)
    # also where averages have been written back
    last = calls // 3 if "accumulated" in name else calls
    assert violations(steps.variables, {"w": Steps.rules["w"]}, step=last)["w"] < 1e-6


def wrapped(where: str, rules: Any, make: Any) -> Any:
    scale = {"initial_scale": 2.0**10, "dynamic_growth_steps": 1000}
    if where == "inside":
        return ProjectedOptimizer(optimizers.LossScaleOptimizer(make(), **scale), rules)
    return optimizers.LossScaleOptimizer(ProjectedOptimizer(make(), rules), **scale)


SKIPPED: dict[str, Any] = {
    "rate, every, schedule": (Steps.rules, lambda: optimizers.Adam(0.1)),
    "accumulated": (Steps.rules, lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2)),
    "metric": (
        {"w": pg.Tag(pg.Simplex(axis=0), metric="optimizer"), "b": Steps.rules["b"]},
        lambda: optimizers.Adam(0.1),
    ),
    "tangents": (
        {"w": pg.Tag(pg.Box(-0.1, 0.1), tangent="gradient"), "b": pg.Tag(pg.UnitNorm(axis=0), tangent="update")},
        lambda: optimizers.SGD(0.1, momentum=0.9),
    ),
}


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("case", SKIPPED)
def test_a_step_with_an_infinite_gradient_is_skipped_and_not_counted(where: str, case: str) -> None:
    whole, broken = (Steps(wrapped(where, *SKIPPED[case])) for _ in range(2))
    for call in range(8):
        if call in (0, 3, 4):
            before = broken.weights()
            broken.step(overflow=True)
            for x, y in zip(broken.weights(), before, strict=True):
                np.testing.assert_array_equal(x, y)
        whole.step()
        broken.step()
    assert int(whole.optimizer.iterations) == int(broken.optimizer.iterations) == (4 if case == "accumulated" else 8)
    for x, y in zip(broken.weights(), whole.weights(), strict=True):
        np.testing.assert_array_equal(x, y)  # scales are powers of 2
    state = (broken.optimizer.inner if where == "inside" else broken.optimizer)._variables
    assert min(float(array(v)) for v in state if v.name == "dynamic_scale") == 2.0**7


def test_averages_of_a_callback_are_refused() -> None:
    model = network()
    model.compile(ProjectedOptimizer(optimizers.SGD(0.1, use_ema=True), RULES, model=model), "mse")
    with pytest.raises(ValueError, match="outside of the sets: leave it out"):
        model.fit(X, Y, verbose=0, validation_data=(X, Y), callbacks=[keras.callbacks.SwapEMAWeights()])
