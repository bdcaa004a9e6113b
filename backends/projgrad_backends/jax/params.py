"""Projecting and checking parameters without an optimizer."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from projgrad.audit import check_inside
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules
from projgrad_backends.jax.parameters import is_module, opened
from projgrad_backends.jax.sharding import automatic
from projgrad_backends.jax.tags import Tags, when_due

__all__ = ["alike", "audit", "plan", "project_params", "project_tagged", "violations"]


def project_params(
    params: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None, step: Any = None
) -> Any:
    """Every constrained parameter replaced by the nearest point of its set.

    Call it on the initial parameters, after loading and after averaging.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.
        step: the number of steps made, maybe traced: for schedules, and to project only what is due then by the option
            `every`; None to project all.

    Returns:
        A new pytree, in which all but the constrained parameters are the same objects. An nnx.Module is updated in
        place and returned.

    Raises:
        TypeError, ValueError: as in `project`; nothing is changed then.
    """
    if is_module(params, "flax.nnx"):
        nnx = sys.modules["flax.nnx"]
        nnx.update(params, project_params(nnx.state(params, nnx.Param), rules, tree=tree, model=params, step=step))
        return params
    return project_tagged(params, Tags(rules, tree, model), step)


def plan(params: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None) -> Plan:
    """What holds for the parameters, with their full names and axes as numbers: print it, or save it.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.

    Raises:
        TypeError, ValueError: as in `project`.

    Examples:
        >>> projgrad.optax.plan(params, rules).save("plan.json")
    """
    params, model = opened(params, model)
    return Tags(rules, tree, model).of(params)[1].plan


def project_tagged(params: Any, tags: Tags, step: Any) -> Any:
    """A pytree with every parameter for which there is a tag projected."""
    leaves, tagged = tags.of(params)
    return tagged.map(_project, step, leaves)


def _project(entry: PlanEntry, params: list[Any], step: Any) -> list[Any]:
    return when_due(entry, step, lambda: entry.project(alike(params), step), lambda: params)


def violations(
    params: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None, step: Any = None
) -> dict[str, float | jax.Array]:
    """The largest distance of any group from its set, for every constrained parameter by name.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.
        step: the number of steps made, for schedules.

    Returns:
        Numbers, or arrays without dimensions where the parameters are traced.

    Raises:
        TypeError, ValueError: as in `project`.
    """
    params, model = opened(params, model)
    leaves, tagged = Tags(rules, tree, model).of(params)
    most: dict[str, Any] = {}
    for entry in tagged.plan:
        found = partial(_violation, entry)
        most[entry.name] = automatic(found, None, [leaves[i] for i in entry.handles], step)
    if any(isinstance(value, jax.core.Tracer) for value in most.values()):
        return most
    return {name: float(value) for name, value in jax.device_get(most).items()}


def audit(
    params: Any,
    rules: Rules | None = None,
    *,
    tree: Any = None,
    model: Any = None,
    step: Any = None,
    tol: float | None = None,
) -> None:
    """Raise an error that names the parameters outside of their sets, as after averaging or loading there may be some.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module; not traced.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.
        step: the number of steps made, for schedules.
        tol: the distance from the set that is allowed; None for 1.5 times `projgrad.tolerance`.

    Raises:
        TypeError: as in `project`.
        ValueError: a parameter is outside or NaN; as in `project`.
    """
    params, model = opened(params, model)
    leaves, tagged = Tags(rules, tree, model).of(params)

    def check(leaves: list[Any]) -> None:
        check_inside(((entry, alike([leaves[i] for i in entry.handles])) for entry in tagged.plan), step, tol)

    return automatic(check, None, leaves)


def alike(arrays: list[Any]) -> list[Any]:
    """Arrays of one framework: where NumPy's are among others, all are JAX's."""
    return arrays if len({type(x) for x in arrays}) == 1 else [jnp.asarray(x) for x in arrays]


def _violation(entry: PlanEntry, params: list[Any], step: Any) -> jax.Array:
    away = jnp.asarray(entry.violation(alike(params), step))
    return jnp.max(away) if away.size else jnp.zeros((), away.dtype)
