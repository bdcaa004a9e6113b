"""An error that names the parameters outside of their sets, in every door."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg

RULES = {"a": pg.UnitNorm(axis=1), "b": pg.NonNeg()}
A = pg.UnitNorm(axis=1).project(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))


def doors() -> list[Any]:
    def torch(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
        torch = pytest.importorskip("torch")
        from projgrad.torch import audit

        audit({"a": torch.tensor(a), "b": torch.tensor(b)}, RULES, **options)

    def jax(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
        jax = pytest.importorskip("jax")
        pytest.importorskip("optax")
        from projgrad.optax import audit

        audit({"a": jax.numpy.asarray(a), "b": jax.numpy.asarray(b)}, RULES, **options)

    def tensorflow(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
        tf = pytest.importorskip("tensorflow")
        from projgrad.tensorflow import audit

        audit({"a": tf.Variable(a), "b": tf.Variable(b)}, RULES, **options)

    def keras(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
        keras = pytest.importorskip("keras")
        from projgrad.keras import audit

        audit([keras.Variable(a, name="a"), keras.Variable(b, name="b")], RULES, **options)

    return [torch, jax, tensorflow, keras]


@pytest.mark.parametrize("audit", doors(), ids=lambda door: door.__name__)
def test_what_is_outside_is_named(audit: Any) -> None:
    inside = np.asarray([0.0, 1.0], np.float32)
    audit(A, inside)
    with pytest.raises(ValueError, match=r"outside of their sets: a is 0\.0?[0-9]+ away from UnitNorm\(axis=1\); proj"):
        audit(0.95 * A, inside)
    with pytest.raises(ValueError, match=r"b is 2 away from NonNeg\(\)"):
        audit(A, -2 * inside)
    with pytest.raises(ValueError, match=r"a is nan away .*; b is "):
        audit(np.nan * A, -inside)
    audit(0.95 * A, inside, tol=0.1)


def test_an_average_of_directions() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer, audit, project_params

    torch.manual_seed(0)
    model, rules = torch.nn.Linear(3, 4), {"weight": pg.UnitNorm()}
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), rules, model=model)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(5):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    audit(model, rules)
    with pytest.raises(ValueError, match=r"weight is .* away from UnitNorm"):
        audit(average, {"*weight": pg.UnitNorm()})
    project_params(average, {"*weight": pg.UnitNorm()})
    audit(average, {"*weight": pg.UnitNorm()})
