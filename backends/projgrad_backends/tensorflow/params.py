"""Constraints in a bare TensorFlow training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from projgrad.audit import check_inside
from projgrad.namespace import native
from projgrad.plan import Plan, PlanEntry
from projgrad.record import rows_of_handles
from projgrad.report import Report, make_report
from projgrad.rules import Parameter, Rules, Use, resolve
from projgrad.schedule import is_step

__all__ = ["audit", "project_params", "report", "violations"]

_NO_LAYER = 'TensorFlow variables have no layer that tells what is "incoming": give the axes as numbers, e.g. axis=0'


def project_params(variables: Any, rules: Rules, *, step: Any = None) -> None:
    """Replace the constrained variables by the nearest points of their sets, in place.

    In a `tf.function` the names are resolved while it is traced, so a compiled step pays for the projections only.

    Args:
        variables: a `tf.Module` (its trainable variables are named by attribute path, such as ``"layers/0/w"``), a
            mapping of names to variables, or a list of variables (named as TensorFlow names them, without ``":0"``).
        rules: name patterns to constraints.
        step: the number of steps made, an int or a tensor such as ``optimizer.iterations``: for schedules, and to
            project only what is due then by the option `every`; None to project all.

    Raises:
        TypeError, ValueError: the rules do not fit the variables; then nothing is changed.

    Examples:
        >>> @tf.function
        ... def step(x, y):
        ...     with tf.GradientTape() as tape:
        ...         loss = loss_of(module(x), y)
        ...     gradients = tape.gradient(loss, module.trainable_variables)
        ...     optimizer.apply_gradients(zip(gradients, module.trainable_variables))
        ...     projgrad.tensorflow.project_params(module, {"*/w": pg.MaxNorm(3.0, axis=0)})
    """
    step = step if step is None or is_step(step) else native(step)[0]
    for entry in _resolved(variables, rules):
        due = step is None or entry.due(step)
        if isinstance(due, bool):
            if due:
                _project(entry, step)
        else:
            tf.cond(due, lambda entry=entry: _project(entry, step), lambda: None)


def _project(entry: PlanEntry, step: Any) -> None:
    for variable, value in zip(entry.handles, entry.project(entry.handles, step), strict=True):
        variable.assign(value)


def violations(variables: Any, rules: Rules, *, step: Any = None) -> dict[str, float]:
    """How far the constrained variables are from their sets.

    Args:
        variables: a `tf.Module`, a mapping of names to variables, or a list of variables.
        rules: name patterns to constraints.
        step: the number of steps made, for schedules.

    Returns:
        The largest distance over the groups of each constrained variable, by its name; equal names count as one.

    Raises:
        TypeError, ValueError: the rules do not fit the variables.
    """
    found: dict[str, float] = {}
    step = step if step is None or is_step(step) else native(step)[0]
    for entry in _resolved(variables, rules):
        distances = entry.violation(entry.handles, step).numpy()
        found[entry.name] = float(np.max(distances, initial=found.get(entry.name, 0.0)))
    return found


def audit(variables: Any, rules: Rules, *, step: Any = None, tol: float | None = None) -> None:
    """Raise an error that names the variables outside of their sets, as after averaging or loading there may be some.

    Args:
        variables: a `tf.Module`, a mapping of names to variables, or a list of variables.
        rules: name patterns to constraints.
        step: the number of steps made, for schedules.
        tol: the distance from the set that is allowed; None for 1.5 times `projgrad.tolerance`.

    Raises:
        TypeError: the rules do not fit the variables.
        ValueError: a variable is outside or NaN; the rules do not fit the variables.
    """
    check_inside(((entry, entry.handles) for entry in _resolved(variables, rules)), step, tol)


def report(variables: Any, rules: Rules, *, step: Any = None) -> Report:
    """What there is to see of all variables, the unconstrained too, a row each: print it, or see `projgrad.Report`.

    Args:
        variables: a `tf.Module`, a mapping of names to variables, or a list of variables.
        rules: name patterns to constraints.
        step: the number of steps made, for schedules.

    Returns:
        The rows, in the order of the variables; those of one set over several variables are one.

    Raises:
        TypeError, ValueError: the rules do not fit the variables.
    """
    held = _held(variables)
    step = step if step is None or is_step(step) else native(step)[0]
    return make_report(rows_of_handles(resolve(rules, held), held), step)


def _resolved(variables: Any, rules: Rules) -> Plan:
    return resolve(rules, _held(variables))


def _held(variables: Any) -> list[Parameter]:
    named: dict[Any, tuple[tf.Variable, list[Use]]] = {}
    for name, variable in _named(variables):
        named.setdefault(variable.ref(), (variable, []))[1].append(Use(name, _NO_LAYER))
    return [Parameter(tuple(uses), tuple(v.shape), v.dtype, handle=v) for v, uses in named.values()]


def _named(variables: Any) -> Iterator[tuple[str, tf.Variable]]:
    if isinstance(variables, tf.Module):
        yield from _walk("", variables, ())
    elif isinstance(variables, Mapping):
        yield from ((str(name), _checked(variable)) for name, variable in variables.items())
    elif isinstance(variables, Iterable) and not isinstance(variables, tf.Variable | tf.Tensor | str):
        yield from ((_checked(variable).name.removesuffix(":0"), variable) for variable in variables)
    else:
        raise TypeError(f"give a tf.Module, a list of tf.Variables or a dict of them, not {type(variables).__name__}")


def _checked(variable: Any) -> tf.Variable:
    if not isinstance(variable, tf.Variable):
        raise TypeError(f"not a tf.Variable: {variable!r} (Keras models and variables go to projgrad.keras)")
    return variable


def _walk(prefix: str, thing: Any, above: tuple[Any, ...]) -> Iterator[tuple[str, tf.Variable]]:
    # not tf.Module's own walk, which passes over the second name of a tied variable
    if any(thing is other for other in above):
        return
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(thing, tf.Variable):
        if thing.trainable:
            yield prefix, thing
    elif isinstance(thing, tf.Module):
        ignored: frozenset[str] = getattr(thing, "_TF_MODULE_IGNORED_PROPERTIES", frozenset())
        children = sorted((k, v) for k, v in vars(thing).items() if k not in ignored)
    elif isinstance(thing, Mapping):
        children = thing.items()
    elif isinstance(thing, list | tuple):
        children = enumerate(thing)
    for key, child in children:
        yield from _walk(f"{prefix}/{key}" if prefix else str(key), child, (*above, thing))
