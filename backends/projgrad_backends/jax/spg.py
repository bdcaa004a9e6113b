"""The spectral projected gradient method as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from projgrad import spg as method
from projgrad.rules import Rules
from projgrad_backends.jax.tags import Tags
from projgrad_backends.jax.update import onto

__all__ = ["SPGState", "spg"]


class SPGState(NamedTuple):
    """Where the last step ended, for `optax.value_and_grad_from_state`, and how the next one starts.

    Args:
        value: of the function, there; infinite before the first step.
        grad: the gradient there.
        projected_gradient: the largest entry of ``P(params - grad) - params`` there, which is 0 at a stationary point.
        evaluations: of the function with its gradient, that the last update made.
        length: to be tried next; 0 before the first step, and where no step went down.
        values: the last ones, of which the largest counts.
    """

    value: jax.Array
    grad: Any
    projected_gradient: jax.Array
    evaluations: jax.Array
    length: jax.Array
    values: jax.Array


class _Trial(NamedTuple):
    """A point that the line search looks at, and the factor to try next if it is not low enough."""

    tries: jax.Array
    found: jax.Array
    factor: jax.Array
    updates: Any
    value: jax.Array
    grad: Any


def spg(
    rules: Rules | None = None,
    *,
    tree: Any = None,
    model: Any = None,
    history_size: int = method.WINDOW,
    max_backtracking_steps: int = 30,
) -> optax.GradientTransformationExtraArgs:
    """Spectral projected gradient: minimises a function over sets, as `optax.lbfgs` does without constraints.

    For all data at once, few parameters and high accuracy. Each update is one iteration of the method: a gradient step
    whose length is the inverse of the curvature along the last one, projected, and shortened until the value is below
    the largest of the last few (Birgin, Martínez and Raydan 2000). It compiles, with a loop in it.

    The parameters stay in their sets as with `project`; start inside, by `project_params`. On convex sets, what the
    method converges to is a stationary point, which is a minimum if the function is convex. On sets that are not
    convex, such as `UnitNorm`, it is a fixed point of ``P(params - t * gradient)`` for some t > 0; that may be a local
    minimum only, and even a saddle point where a set has several nearest points.

    Where the given `value` is not the one that the last update ended with, as for another batch, older values are
    forgotten. Where no step goes down, or the value is not finite, the update is 0.

    Args:
        rules: as in `project`; what they leave free is minimised over without a constraint.
        tree: as in `project`.
        model: as in `project`.
        history_size: how many values a new one is compared with; with 1, no update goes up.
        max_backtracking_steps: how often a step is shortened before it is given up.

    Returns:
        A transformation whose `update` takes the gradient, state, parameters, and as keywords `value`, `grad` and
        `value_fn`, as those of optax with a line search; further keywords go to `value_fn`. It is a whole optimizer,
        not for a chain.

    Raises:
        TypeError, ValueError: as `project`; a number is below 1; on `init`, there is a constraint that changes with the
            step or is not strict (`every`, `Schedule`, `rate`, ``metric="optimizer"``).

    Examples:
        >>> tx = projgrad.optax.spg({"*": pg.NonNeg()})
        >>> value_and_grad = optax.value_and_grad_from_state(loss)
        >>> @jax.jit
        ... def step(params, state):
        ...     value, grad = value_and_grad(params, state=state)
        ...     updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        ...     return optax.apply_updates(params, updates), state
    """
    if history_size < 1 or max_backtracking_steps < 1:
        raise ValueError("spg: history_size and max_backtracking_steps must be at least 1")
    tags = Tags(rules, tree, model)

    def init(params: Any) -> SPGState:
        leaves, tagged = tags.of(params)
        tagged.check(leaves)
        method.check_plan(tagged.plan)
        dtype = _scalar(params)
        return SPGState(
            value=jnp.asarray(jnp.inf, dtype),
            grad=_zeros(params),
            projected_gradient=jnp.asarray(jnp.inf, dtype),
            evaluations=jnp.zeros((), jnp.int32),
            length=jnp.zeros((), dtype),
            values=jnp.full(history_size, -jnp.inf, dtype),
        )

    def to(params: Any, distance: Any, gradient: Any) -> Any:
        """The updates from the parameters to the projection of the point that is so far down the gradient."""
        leaves, tagged = tags.of(params)
        steps = jax.tree.map(lambda g, p: (-distance * g).astype(jnp.asarray(p).dtype), gradient, params)
        given = tagged.treedef.flatten_up_to(steps)
        return tagged.map(onto, None, leaves, [None] * len(leaves), given)

    def update(
        updates: Any,
        state: SPGState,
        params: Any = None,
        *,
        value: Any,
        grad: Any,
        value_fn: Callable[..., Any],
        **extra: Any,
    ) -> tuple[Any, SPGState]:
        if params is None:
            raise ValueError("projgrad.optax.spg needs the parameters: call update(grad, state, params, ...)")
        eps = float(jnp.finfo(jnp.asarray(value).dtype).eps)
        dtype = state.value.dtype
        value = jnp.asarray(value, dtype)
        downhill, gradient = _conj(updates), _conj(grad)
        length = jnp.where(state.length > 0, state.length, method.first_length(_largest(downhill, dtype), jnp))
        fresh = jnp.full_like(state.values, -jnp.inf).at[-1].set(value)
        values = jnp.where(method.is_same(value, state.value, eps, jnp), state.values, fresh)
        highest = jnp.max(values)

        def look(trial: _Trial) -> _Trial:
            made = to(params, length * trial.factor, downhill)
            point = optax.apply_updates(params, made)
            new, slopes = jax.value_and_grad(value_fn)(point, **extra)
            new = jnp.asarray(new, dtype)
            slope = _inner(gradient, _minus(point, params), dtype)
            found = method.is_sufficient(new, highest, slope, eps, jnp)
            less = method.shorter(trial.factor, value, new, slope, jnp)
            factor = jnp.where(found, trial.factor, less)
            return _Trial(trial.tries + 1, found, factor, made, new, slopes)

        none = _zeros(params)
        start = _Trial(jnp.zeros((), jnp.int32), jnp.asarray(False), jnp.ones((), dtype), none, value, none)
        end = jax.lax.while_loop(lambda trial: ~trial.found & (trial.tries <= max_backtracking_steps), look, start)

        made = _where(end.found, end.updates, none)
        slopes = _where(end.found, end.grad, grad)
        point = optax.apply_updates(params, made)
        change = _minus(point, params)
        bend = _inner(change, _minus(_conj(slopes), gradient), dtype)
        length = length * end.factor
        following = method.next_length(_inner(change, change, dtype), bend, length, jnp)
        return made, SPGState(
            value=jnp.where(end.found, end.value, value),
            grad=slopes,
            projected_gradient=_largest(to(point, 1.0, _conj(slopes)), dtype),
            evaluations=end.tries,
            length=jnp.where(end.found, following, 0),
            values=jnp.where(end.found, jnp.append(values[1:], end.value), values),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scalar(params: Any) -> Any:
    """The dtype that values and inner products are computed in."""
    return jnp.finfo(jnp.result_type(jnp.float32, *(jnp.asarray(p).dtype for p in jax.tree.leaves(params)))).dtype


def _zeros(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.asarray(p).dtype), params)  # not of a weak type


def _conj(gradient: Any) -> Any:
    """The direction in which the function rises most, which in JAX is the conjugate of a complex gradient."""
    return jax.tree.map(jnp.conj, gradient)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, jnp.asarray(y).astype(x.dtype)), a, b)


def _inner(a: Any, b: Any, dtype: Any) -> jax.Array:
    """The inner product of all entries, of complex ones by their parts."""
    parts = jax.tree.map(lambda x, y: jnp.real(jnp.vdot(*(_wide(v) for v in (x, y)))).astype(dtype), a, b)
    return jax.tree.reduce(jnp.add, parts, jnp.zeros((), dtype))


def _largest(tree: Any, dtype: Any) -> jax.Array:
    """The largest absolute value of any entry; NaN where there is one."""
    parts = jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0).astype(dtype), tree)
    return jax.tree.reduce(jnp.maximum, parts, jnp.zeros((), dtype))


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.result_type(x, jnp.float32))
