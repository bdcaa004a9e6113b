"""Projection as an optax transformation."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from projgrad.rules import Rules
from projgrad_backends.jax.params import project_params
from projgrad_backends.jax.tags import Tags
from projgrad_backends.jax.update import onto

__all__ = ["ProjectState", "apply_updates", "project", "projected"]


class ProjectState(NamedTuple):
    """How many updates were made, where that matters."""

    count: jax.Array  # type: ignore[assignment]


def project(
    rules: Rules | None = None, *, tree: Any = None, model: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The last transformation of a chain: ``updates' = P(params + updates) - params``.

    Parameters that start in their sets stay in them, up to `projgrad.tolerance` (boxes and orthants: exactly), in every
    precision. A group that ends in its set by itself gets its update back as it is. Updates of constrained parameters
    have the dtype of the parameter.

    Adding an update cannot be more accurate than `params` is: from a start far outside, the first step ends within
    about the rounding error of `params` from the set, and ``optax.MultiSteps`` stays outside until its first real
    step. So call `project_params` on the initial parameters, or step with `apply_updates`. In float16 and bfloat16,
    a sphere of a few entries may be missed by twice the tolerance after a step longer than half its radius.

    Args:
        rules: patterns of key paths joined by "/" (`fnmatch`, ``*`` crosses separators), or layer classes, to
            constraints; None leaves free; the last rule that selects a parameter wins. The "/value" at the end of an
            nnx.State's paths is not part of the name but may be given.
        tree: in the place of `rules`, a pytree prefix of constraints, with None for what is left free.
        model: the nnx.Module or equinox Module that tells the layers for ``axis="incoming"`` and layer classes; not
            needed where the parameters are an equinox module.

    Returns:
        A transformation that counts the steps where a tag asks for it (`every`, schedules), and has no state otherwise.
        Its `init` checks the rules; its `update` needs the parameters.

    Raises:
        TypeError, ValueError: both or neither of `rules` and `tree` are given; on `init`, a rule selects nothing or
            does not fit.

    Example:
        >>> rules = {"*/kernel": pg.MaxNorm(3.0), "*/bias": pg.NonNeg()}
        >>> tx = optax.chain(optax.adam(1e-3), projgrad.optax.project(rules))
        >>> params = projgrad.optax.project_params(params, rules)
        >>> state = tx.init(params)
    """
    tags = Tags(rules, tree, model)

    def init(params: Any) -> optax.EmptyState | ProjectState:
        leaves, tagged = tags.of(params)
        tagged.check(leaves)
        return ProjectState(jnp.zeros((), jnp.int32)) if tagged.plan.counts else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if params is None:
            raise ValueError("projgrad.optax.project needs the parameters: call update(updates, state, params)")
        leaves, tagged = tags.of(params)
        step = None
        if tagged.plan.counts:
            if not isinstance(state, ProjectState):
                raise ValueError("the rules count steps: call update with the state that init returned")
            step = state.count + 1
            state = ProjectState(step)
        return tagged.map(partial(onto, step=step), leaves, tagged.treedef.flatten_up_to(updates)), state

    return optax.GradientTransformationExtraArgs(init, update)


def projected(
    inner: optax.GradientTransformation, rules: Rules | None = None, *, tree: Any = None, model: Any = None
) -> optax.GradientTransformationExtraArgs:
    """``inner``, then `project`: a whole transformation that keeps the parameters in their sets.

    Args:
        inner: any optax transformation.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`.

    Raises:
        TypeError, ValueError: as in `project`.

    Example:
        >>> tx = projgrad.optax.projected(optax.adam(1e-3), {"*/kernel": pg.MaxNorm(3.0)})
    """
    return optax.chain(inner, project(rules, tree=tree, model=model))


def apply_updates(
    params: Any, updates: Any, rules: Rules | None = None, *, tree: Any = None, model: Any = None, step: Any = None
) -> Any:
    """``P(params + updates)``: `optax.apply_updates` and then the projection itself, without the rounding of a sum.

    The rules are resolved at every call, so call it in a function under `jax.jit`.

    Args:
        params: the parameters; what has the update None stays as it is.
        updates: of the same structure, from any transformation.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`.
        step: the number of steps made, this one included: for schedules and the option `every`, as in `project_params`.

    Returns:
        The new parameters.

    Raises:
        TypeError, ValueError: as in `project`.
    """
    added = jax.tree.map(_add, params, updates, is_leaf=lambda leaf: leaf is None)
    return project_params(added, rules, tree=tree, model=model, step=step)


def _add(p: Any, u: Any) -> Any:
    return p if p is None or u is None else jnp.asarray(p + u).astype(jnp.asarray(p).dtype)
