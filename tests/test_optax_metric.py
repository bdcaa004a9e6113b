"""`metric="optimizer"` in `projgrad.optax`: the metric is that of the step, for every transformation of optax."""

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
from tests.textbook import STEPS, adadelta, adafactor, gradients, moving, squares

SIMPLEX = pg.Simplex(1.0, axis=0)
pytestmark = pytest.mark.usefixtures("double")


def adam(gs, b2=0.999, eps=1e-8, eps_root=0.0):
    return np.sqrt(moving(squares(gs), b2) / (1 - b2 ** len(gs)) + eps_root) + eps


def amsgrad(gs, b2=0.999, eps=1e-8):
    most = 0.0
    for t in range(1, len(gs) + 1):
        most = np.maximum(most, moving(squares(gs[:t]), b2) / (1 - b2**t))
    return np.sqrt(most) + eps


def adamax(gs, b2=0.999, eps=1e-8):
    most = 0.0
    for g in gs:
        most = np.maximum(b2 * most, np.abs(g) + eps)
    return most


def belief(gs, b1=0.9, b2=0.999, eps=1e-16, root=1e-16):
    mean = total = 0.0
    for g in gs:
        mean = b1 * mean + (1 - b1) * g
        total = b2 * total + (1 - b2) * (g - mean) ** 2 + root
    return np.sqrt(total / (1 - b2 ** len(gs))) + eps


def yogi(gs, b2=0.999, eps=1e-3):
    total = 1e-6
    for g in gs:
        total = total - (1 - b2) * np.sign(total - g**2) * g**2
    return np.sqrt(total / (1 - b2 ** len(gs))) + eps


def adan(gs, b2=0.92, b3=0.99, eps=1e-8, root=0.0):
    mixed = [g + (1 - b2) * (g - was) for g, was in zip(gs, [gs[0], *gs[:-1]], strict=True)]
    return np.sqrt(moving(squares(mixed), b3) / (1 - b3 ** len(gs)) + root) + eps


def centred(gs, decay=0.9, eps=1e-8):
    return np.sqrt(moving(squares(gs), decay) - moving(gs, decay) ** 2 + eps)


BY_THE_BOOK: dict[str, tuple[Any, Any]] = {
    "adam": (optax.adam(0.1), adam),
    "adam, its numbers": (
        optax.adam(0.1, b2=0.9, eps=1e-3, eps_root=1e-4),
        partial(adam, b2=0.9, eps=1e-3, eps_root=1e-4),
    ),
    "adamw": (optax.adamw(0.1, weight_decay=0.1), adam),
    "nadam": (optax.nadam(0.1), adam),
    "lamb": (optax.lamb(0.1), partial(adam, eps=1e-6)),
    "amsgrad": (optax.amsgrad(0.1), amsgrad),
    "adamax": (optax.adamax(0.1), adamax),
    "adan": (optax.adan(0.1, eps_root=1e-9), partial(adan, root=1e-9)),
    "adabelief": (optax.adabelief(0.1), belief),
    "yogi": (optax.yogi(0.1), yogi),
    "radam": (optax.radam(0.1, threshold=4.5), adam),
    "radam, at the start": (optax.radam(0.1), lambda gs: np.ones_like(gs[0])),
    "adagrad": (optax.adagrad(0.1), lambda gs: np.sqrt(0.1 + sum(squares(gs)) + 1e-7)),
    "rmsprop": (optax.rmsprop(0.1), lambda gs: np.sqrt(moving(squares(gs), 0.9) + 1e-8)),
    "rmsprop, eps outside": (
        optax.rmsprop(0.1, decay=0.8, eps=1e-4, eps_in_sqrt=False, momentum=0.9),
        lambda gs: np.sqrt(moving(squares(gs), 0.8)) + 1e-4,
    ),
    "rmsprop, corrected": (
        optax.rmsprop(0.1, bias_correction=True),
        lambda gs: np.sqrt(moving(squares(gs), 0.9) / (1 - 0.9**STEPS) + 1e-8),
    ),
    "rmsprop, centred": (optax.rmsprop(0.1, centered=True), centred),
    "adadelta": (optax.adadelta(1.0), partial(adadelta, rho=0.9, eps=1e-6)),
    "adafactor": (optax.adafactor(0.1), partial(adafactor, factored=False)),
    "adafactor, factored": (optax.adafactor(0.1, min_dim_size_to_factor=2), adafactor),
    "sgd": (optax.sgd(0.1, momentum=0.9), lambda gs: np.ones_like(gs[0])),
    "scheduled": (optax.chain(optax.clip(1e9), optax.adam(lambda t: 0.1 / (t + 1), eps=1e-5)), partial(adam, eps=1e-5)),
    "injected": (optax.inject_hyperparams(optax.adam)(0.1, eps=1e-4, b2=0.99), partial(adam, eps=1e-4, b2=0.99)),
    "injected, scheduled": (
        optax.inject_hyperparams(optax.adam)(0.1, eps=lambda t: 1e-3 * (t + 1)),
        partial(adam, eps=1e-3 * STEPS),
    ),
    "accumulated": (optax.MultiSteps(optax.adam(0.1), 1), adam),
    "finite": (optax.apply_if_finite(optax.adam(0.1), 3), adam),
    "nested": (optax.chain(optax.chain(optax.identity(), optax.chain(optax.adam(0.1))), optax.scale(2.0)), adam),
    "named": (optax.named_chain(("b", optax.identity()), ("a", optax.scale_by_adam()), ("c", optax.scale(-0.1))), adam),
    "masked": (optax.masked(optax.adam(0.1), {"w": True}), adam),
    "partition": (
        optax.partition({"b": optax.adam(0.1, eps=1e-4), "a": optax.adagrad(0.1)}, {"w": "b"}),
        partial(adam, eps=1e-4),
    ),
    "product": (
        optax.chain(optax.scale_by_rss(), optax.scale_by_factored_rms(), optax.scale(-0.1)),
        lambda gs: twice(gs),
    ),
    "jitted": (optax.GradientTransformation(optax.adam(0.1).init, jax.jit(optax.adam(0.1).update)), adam),
}  # fmt: skip


def twice(gs):
    """Adafactor after Adagrad."""
    totals = [np.sqrt(0.1 + sum(squares(gs[:t])) + 1e-7) for t in range(1, STEPS + 1)]
    return totals[-1] * adafactor([g / h for g, h in zip(gs, totals, strict=True)], factored=False)


def run(tx, start, gs):
    """The parameters before the last step, the plain update, and that of the transformation."""
    p, state = start, tx.init(start)
    step = jax.jit(lambda g, state, p: tx.update(g, state, p))
    updates: Any = None
    for i, g in enumerate(gs):
        p = p if i == 0 else optax.apply_updates(p, updates)
        updates, state = step({"w": jnp.asarray(g)}, state, p)
    return p, updates, state


@pytest.mark.parametrize("name", BY_THE_BOOK)
def test_the_metric_is_that_of_the_book(name):
    tx, book = BY_THE_BOOK[name]
    tx = tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx
    gs, start = gradients(-6), {"w": jnp.full((6, 3), 1 / 6)}
    p, updates, _ = run(po.projected(tx, {"w": SIMPLEX}, metric="optimizer"), start, gs)
    # the plain last step, from the same state: it does not depend on how the parameters came to be where they are
    plain: Any = None
    plain_state = tx.init(start)
    for i, g in enumerate(gs):
        plain, plain_state = tx.update({"w": jnp.asarray(g)}, plain_state, p if i == STEPS - 1 else start)
    h = np.broadcast_to(book(gs), (6, 3))
    expected = SIMPLEX.project(np.asarray(p["w"] + plain["w"]), metric=np.maximum(h, 1e-150))
    np.testing.assert_allclose(np.asarray(p["w"] + updates["w"]), expected, rtol=1e-6, atol=1e-9)
