"""Projection as an optax transformation."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from projgrad.rules import Rules
from projgrad.tag import GRADIENT, UPDATE
from projgrad_backends.jax.metric import weights_of
from projgrad_backends.jax.params import project_tagged
from projgrad_backends.jax.record import RecordState, check_nonfinite, empty_record, measured, warn_nonfinite
from projgrad_backends.jax.tags import Tagged, Tags
from projgrad_backends.jax.tangent import made_tangent, with_tangent_momentum
from projgrad_backends.jax.update import onto

__all__ = ["ProjectState", "apply_updates", "project", "projected"]


class ProjectState(NamedTuple):
    """How many updates were made, where that matters."""

    count: jax.Array  # type: ignore[assignment]


def project(
    rules: Rules | None = None,
    *,
    tree: Any = None,
    model: Any = None,
    record: bool = False,
    nonfinite: str | None = None,
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
        record: keep in the state what the last projection of each constrained parameter did, for `report`. A compiled
            step of Adam takes 1.1 to 1.2 times as long with it in a max-norm or a simplex, and twice in `NonNeg`, which
            is quick itself (``python -m benchmarks record``). Without it there is nothing of it in the state.
        nonfinite: "warn" for a RuntimeWarning that names the parameters with a NaN or infinity after a step, at a pass
            over all of them and a call of the host at every step, with which it takes 1.5 to 2.4 times as long; None
            for nothing. Compiled code cannot raise: for an error, look at `report`, or use `jax.experimental.checkify`.

    Returns:
        A transformation that counts the steps where a tag asks for it (`every`, schedules), and has no state otherwise.
        Its `init` checks the rules; its `update` needs the parameters.

    Raises:
        TypeError, ValueError: both or neither of `rules` and `tree` are given; `nonfinite` is not known; on `init`, a
            rule selects nothing or does not fit.

    Examples:
        >>> rules = {"*/kernel": pg.MaxNorm(3.0), "*/bias": pg.NonNeg()}
        >>> tx = optax.chain(optax.adam(1e-3), projgrad.optax.project(rules))
        >>> params = projgrad.optax.project_params(params, rules)
        >>> state = tx.init(params)
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        _need(params, "project")
        return projection.update(updates, state, params)

    projection = _Projection(Tags(rules, tree, model), record, nonfinite)
    return optax.GradientTransformationExtraArgs(lambda params: projection.init(params, euclidean=True), update)


def projected(
    inner: optax.GradientTransformation,
    rules: Rules | None = None,
    *,
    tree: Any = None,
    model: Any = None,
    metric: str = "euclidean",
    record: bool = False,
    nonfinite: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """``inner``, then `project`: a whole transformation that keeps the parameters in their sets.

    With ``metric="optimizer"``, the point is the one that is nearest in the metric of the step: where `inner` turns a
    gradient g into g / h, entry by entry, the one that minimises ``sum(h * (y - x)**2)``. Only so do Adam and its kin
    settle on the constrained minimum where a set couples entries. The h are found in the state of `inner` after its
    update, inside of chains, masks, partitions, `optax.inject_hyperparams`, `optax.MultiSteps` and other wrappers:
    `scale_by_adam` (adam, adamw, nadam, lamb, ...), `scale_by_amsgrad`, `scale_by_adamax`, `scale_by_adan`,
    `scale_by_belief`, `scale_by_yogi`, `scale_by_radam`, `scale_by_rms`, `scale_by_stddev`, `scale_by_rss` (adagrad),
    `scale_by_adadelta` and `scale_by_factored_rms` (adafactor). Their eps and decay rates, which no state holds, are
    read from their update functions. `register_metric` adds others. Where nothing scales, as in SGD and under a mask,
    and before the first step, the metric is the Euclidean one. Where only signs count (lion, sign_sgd, rprop) there is
    none, and that is an error for the parameters it is asked for. Any other transformation without a state is taken to
    scale nothing. Factors that all entries of a parameter share are left out, so that a `projgrad.Joint` set over
    parameters of different learning rates, or with lamb's trust ratios, ends elsewhere.

    Args:
        inner: any optax transformation.
        rules: as in `project`; a `projgrad.Tag` may say another metric for what it selects.
        tree: as in `project`.
        model: as in `project`.
        metric: "euclidean" or "optimizer".
        record: as in `project`.
        nonfinite: as in `project`.

    Raises:
        TypeError, ValueError: as in `project`; `metric` is neither; on `init`, a constraint has no form in a metric, or
            the scaling of `inner` is not found.

    Examples:
        >>> rules = {"*/kernel": pg.MaxNorm(3.0)}
        >>> tx = projgrad.optax.projected(optax.adam(1e-3), rules, metric="optimizer")
    """
    extended = optax.with_extra_args_support(inner)
    projection = _Projection(Tags(rules, tree, model, metric), record, nonfinite)

    def init(params: Any) -> tuple[Any, Any]:
        state, own = inner.init(params), projection.init(params)

        def check(state: Any, params: Any) -> list[Any]:
            return weights_of(inner, state, state, params, *projection.tags.of(params))

        jax.eval_shape(lambda: check(state, params))
        return state, own

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        _need(params, "projected")
        old, own = state
        leaves, tagged = projection.tags.of(params)
        step = own.count if tagged.plan.counts else None
        updates = made_tangent(tagged, GRADIENT, leaves, updates, step, descent=True)
        updates, new = extended.update(updates, old, params, **extra)
        updates = made_tangent(tagged, UPDATE, leaves, updates, step)
        weights = partial(weights_of, inner, new, old, params)
        updates, own = projection.update(updates, own, params, weights)
        new = with_tangent_momentum(tagged, new, params, updates, own.count if tagged.plan.counts else None)
        return updates, (new, own)

    return optax.GradientTransformationExtraArgs(init, update)


def _need(params: Any, who: str) -> None:
    if params is None:
        raise ValueError(f"projgrad.optax.{who} needs the parameters: call update(updates, state, params)")


class _Projection:
    """What `project` and `projected` have in common."""

    def __init__(self, tags: Tags, record: bool, nonfinite: str | None) -> None:
        check_nonfinite(nonfinite)
        self.tags, self.record, self.nonfinite = tags, record, nonfinite

    def init(self, params: Any, *, euclidean: bool = False) -> optax.EmptyState | ProjectState | RecordState:
        """The state; with `euclidean`, an error where another metric is asked for."""
        leaves, tagged = self.tags.of(params)
        tagged.check(leaves)
        if euclidean:
            _refuse_options(tagged, "project() in a chain")
        if self.record:
            return empty_record(tagged)
        return ProjectState(jnp.zeros((), jnp.int32)) if tagged.plan.counts else optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any, weights: Any = None) -> tuple[Any, Any]:
        """The updates that end in the sets, nearest in the metric of ``weights(leaves, tagged)``."""
        leaves, tagged = self.tags.of(params)
        step = None
        if self.record or tagged.plan.counts:
            if not isinstance(state, RecordState if self.record else ProjectState):
                raise ValueError("the rules count steps, or record=True: call update with the state that init returned")
            state = state._replace(count=state.count + 1)
            step = state.count if tagged.plan.counts else None
        given = tagged.treedef.flatten_up_to(updates)
        h = [None] * len(leaves) if weights is None else weights(leaves, tagged)
        new = tagged.map(onto, step, leaves, h, given)
        if self.record:
            state = measured(state, tagged, leaves, given, tagged.treedef.flatten_up_to(new), step)
        if self.nonfinite:
            warn_nonfinite(tagged, leaves, tagged.treedef.flatten_up_to(new))
        return new, state


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
    tags = Tags(rules, tree, model)
    _refuse_options(tags.of(params)[1], "apply_updates()")
    added = jax.tree.map(_add, params, updates, is_leaf=lambda leaf: leaf is None)
    return project_tagged(added, tags, step)


def _refuse_options(tagged: Tagged, who: str) -> None:
    """Raise ValueError where an option asks for what only `projected` can do."""
    for option, asked in (('metric="optimizer"', lambda e: e.in_metric), ("tangent=", lambda e: e.tag.tangent)):
        asking = [entry.name for entry in tagged.plan if asked(entry)]
        if asking:
            raise ValueError(
                f"{', '.join(asking)}: {who} does not see the state of the optimizer, which {option} needs: use "
                "projgrad.optax.projected(optimizer, rules)"
            )


def _add(p: Any, u: Any) -> Any:
    # rounded after the sum, as `optax.apply_updates` does
    return p if p is None or u is None else jnp.asarray(p + u).astype(jnp.asarray(p).dtype)
