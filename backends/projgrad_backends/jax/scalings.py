"""By what the transformations of optax scale a coordinate: formulas of the moments that their states hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["FORMULAS", "MAKERS", "Formula", "Numbers", "wide"]

# Of the numbers k, the count t of updates made, the moments of one parameter after and, where that matters, before the
# update, and its shape. What multiplies a whole parameter, as a learning rate does, does not matter.

Numbers = Mapping[str, Any]


def _adam(k: Numbers, t: Any, nu: Any) -> Any:
    return jnp.sqrt(_hat(nu, k["b2"], t) + k.get("eps_root", 0.0)) + k["eps"]


def _radam(k: Numbers, t: Any, nu: Any) -> Any:
    t, b2 = jnp.maximum(t, 1), k["b2"]
    most = 2.0 / (1.0 - b2) - 1.0
    length = most - 2.0 * t * b2**t / (1.0 - b2**t)
    return jnp.where(length >= k["threshold"], _adam(k, t, nu), 1.0)  # the first steps are not scaled


def _belief(k: Numbers, t: Any, nu: Any) -> Any:
    return jnp.sqrt(_hat(nu, k["b2"], t)) + k["eps"]  # nu has eps_root in it


def _adan(k: Numbers, t: Any, n: Any) -> Any:
    return jnp.sqrt(_hat(n, k["b3"], t) + k["eps_root"]) + k["eps"]


def _amsgrad(k: Numbers, t: Any, nu_max: Any) -> Any:
    return jnp.sqrt(nu_max + k["eps_root"]) + k["eps"]


def _adamax(k: Numbers, t: Any, nu: Any) -> Any:
    return nu  # which has eps in it


def _rss(k: Numbers, t: Any, total: Any) -> Any:
    return jnp.sqrt(total + k["eps"])


def _rms(k: Numbers, t: Any, nu: Any) -> Any:
    if t is not None:
        nu = _hat(nu, k["decay"], t)
    return jnp.sqrt(nu + k["eps"]) if k.get("eps_in_sqrt", True) else jnp.sqrt(nu) + k["eps"]


def _stddev(k: Numbers, t: Any, mu: Any, nu: Any) -> Any:
    if t is not None:
        mu, nu = _hat(mu, k["decay"], t), _hat(nu, k["decay"], t)
    variance = nu - jnp.abs(mu) ** 2
    if k.get("eps_in_sqrt", True):
        return jnp.sqrt(jnp.maximum(variance + k["eps"], 0.0))
    return jnp.sqrt(jnp.maximum(variance, 0.0)) + k["eps"]


def _adadelta(k: Numbers, t: Any, e_g: Any, was: Any) -> Any:
    return jnp.sqrt(e_g + k["eps"]) / jnp.sqrt(was + k["eps"])


def _factored(k: Numbers, t: Any, row: Any, column: Any, v: Any, shape: tuple[int, ...]) -> Any:
    order = np.argsort(shape)
    if not k["factored"] or len(shape) < 2 or shape[order[-2]] < k["min_dim_size_to_factor"]:
        return jnp.sqrt(v)
    d1, d0 = int(order[-2]), int(order[-1])  # the longest two axes
    mean = jnp.mean(row, axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
    row = row / jnp.where(mean > 0, mean, 1.0)
    return jnp.sqrt(jnp.expand_dims(row, d0)) * jnp.sqrt(jnp.expand_dims(column, d1))


class Formula(NamedTuple):
    """Which fields of a state have the moments, and the formula by the function that made the transformation."""

    fields: tuple[str, ...]
    by: Mapping[str, Callable[..., Any]]
    steps: str = "count"
    before: tuple[str, ...] = ()
    shape: bool = False


FORMULAS = {
    "ScaleByAdamState": Formula(
        ("nu",),
        {"scale_by_adam": _adam, "scale_by_radam": _radam, "scale_by_yogi": _adam, "scale_by_adamax": _adamax},
    ),
    "ScaleByAmsgradState": Formula(("nu_max",), {"scale_by_amsgrad": _amsgrad}),
    "ScaleByBeliefState": Formula(("nu",), {"scale_by_belief": _belief}),
    "ScaleByAdanState": Formula(("n",), {"scale_by_adan": _adan}, steps="t"),
    "ScaleByRssState": Formula(("sum_of_squares",), {"scale_by_rss": _rss}),
    "ScaleByRmsState": Formula(("nu",), {"scale_by_rms": _rms}),
    "ScaleByRmsWithCountState": Formula(("nu",), {"scale_by_rms": _rms}),
    "ScaleByRStdDevState": Formula(("mu", "nu"), {"scale_by_stddev": _stddev}),
    "ScaleByRStdDevWithCountState": Formula(("mu", "nu"), {"scale_by_stddev": _stddev}),
    "ScaleByAdaDeltaState": Formula(("e_g",), {"scale_by_adadelta": _adadelta}, before=("e_x",)),
    "FactoredState": Formula(("v_row", "v_col", "v"), {"scale_by_factored_rms": _factored}, shape=True),
}
MAKERS = {maker for formula in FORMULAS.values() for maker in formula.by}


def _hat(moment: Any, decay: Any, t: Any) -> Any:
    return moment / (1.0 - decay ** jnp.maximum(t, 1)).astype(moment.dtype)


def wide(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype("float32") if x.dtype.itemsize < 4 else x
