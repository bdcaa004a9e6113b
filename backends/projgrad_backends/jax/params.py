"""Projecting and checking parameters without an optimizer."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

from projgrad.constraint import Constraint
from projgrad.rules import Rules
from projgrad_backends.jax.parameters import is_module
from projgrad_backends.jax.tags import Tags

__all__ = ["project_params", "violations"]


def project_params(params: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None) -> Any:
    """Every constrained parameter replaced by the nearest point of its set.

    Call it on the initial parameters, after loading and after averaging.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.

    Returns:
        A new pytree, in which all but the constrained parameters are the same objects. An nnx.Module is updated in
        place and returned.

    Raises:
        TypeError, ValueError: as in `project`; nothing is changed then.
    """
    if is_module(params, "flax.nnx"):
        nnx = sys.modules["flax.nnx"]
        nnx.update(params, project_params(nnx.state(params, nnx.Param), rules, tree=tree, model=params))
        return params
    leaves, tagged = Tags(rules, tree, model).of(params)
    return tagged.map(lambda constraint, p: constraint.project(p), leaves)


def violations(
    params: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None
) -> dict[str, float | jax.Array]:
    """The largest distance of any group from its set, for every constrained parameter by name.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.

    Returns:
        Numbers, or arrays without dimensions where the parameters are traced.

    Raises:
        TypeError, ValueError: as in `project`.
    """
    if is_module(params, "flax.nnx"):
        nnx = sys.modules["flax.nnx"]
        return violations(nnx.state(params, nnx.Param), rules, tree=tree, model=params)
    leaves, tagged = Tags(rules, tree, model).of(params)
    found = zip(tagged.plan, tagged.positions, strict=True)
    most: dict[str, Any] = {entry.name: _largest(entry.constraint, leaves[i]) for entry, i in found}
    if any(isinstance(value, jax.core.Tracer) for value in most.values()):
        return most
    return {name: float(value) for name, value in jax.device_get(most).items()}


def _largest(constraint: Constraint, x: Any) -> jax.Array:
    away = jnp.asarray(constraint.violation(x))
    return jnp.max(away) if away.size else jnp.zeros((), away.dtype)
