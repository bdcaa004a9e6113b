"""What optimizers divide their steps by, from all gradients so far, where frameworks agree on it."""

from __future__ import annotations

import numpy as np

__all__ = ["STEPS", "adadelta", "adafactor", "gradients", "moving", "squares"]

STEPS = 5


def gradients(least, shape=(6, 3), seed=0):
    """Gradients of very different sizes, from 10 to the power `least` to 10, of which some are always zero."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(least, 1, shape)
    scale[0] = 0
    return [scale * rng.standard_normal(shape) for _ in range(STEPS)]


def squares(gs):
    return [g**2 for g in gs]


def moving(values, decay):
    """The exponential moving average, from 0, not corrected for that."""
    total = 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
    return total


def adadelta(gs, rho, eps):
    seen = moved = h = 0.0
    for g in gs:
        seen = rho * seen + (1 - rho) * g**2
        h = np.sqrt(seen + eps) / np.sqrt(moved + eps)
        moved = rho * moved + (1 - rho) * (g / h) ** 2
    return h


def adafactor(gs, factored=True):
    rows = columns = total = np.zeros(())
    for t, g in enumerate(gs, 1):
        decay = 1 - float(t) ** -0.8
        sq = g**2 + 1e-30
        total = decay * total + (1 - decay) * sq
        rows = decay * rows + (1 - decay) * sq.mean(1, keepdims=True)
        columns = decay * columns + (1 - decay) * sq.mean(0, keepdims=True)
    return np.sqrt(rows * columns / rows.mean()) if factored else np.sqrt(total)
