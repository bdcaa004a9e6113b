"""Which constraint holds for which leaf of a pytree, resolved once per structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules, resolve
from projgrad.tag import Tag, as_tag, check_metric_name
from projgrad_backends.jax.parameters import is_array, is_module, is_skipped, parameters
from projgrad_backends.jax.sharding import automatic, is_manual

__all__ = ["Tagged", "Tags", "when_due"]

_MOST = 16  # structures remembered; one optimizer sees one or two


@dataclass(frozen=True)
class Tagged:
    """The plan of a pytree, whose handles are positions among the leaves, and the names of all parameters."""

    treedef: Any
    plan: Plan
    names: Mapping[int, str]

    def check(self, leaves: list[Any]) -> None:
        """Raise what projecting the leaves would raise, with the name: a function may return another shape."""
        for entry in self.plan:
            shapes = zip(entry.shapes, entry.handles, strict=True)
            structs = [jax.ShapeDtypeStruct(shape, leaves[i].dtype) for shape, i in shapes]
            try:
                jax.eval_shape(lambda given, entry=entry: entry.project(given, step=0), structs)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{entry.name} cannot have {entry.constraint}: {error}") from error

    def map(self, do: Callable[..., Any], step: Any, *leaves: list[Any]) -> Any:
        """The tree of the last of `leaves`, with those that ``do(entry, *lists, step)`` makes of the constrained ones.

        Args:
            do: is given an entry of the plan, its part of every one of `leaves`, and the step.
            step: how many steps were made, or None.
            leaves: of trees of this structure, the parameters first.
        """
        new = list(leaves[-1])
        for entry in self.plan:
            parts = [[given[i] for i in entry.handles] for given in leaves]
            made = automatic(partial(do, entry), parts[0], *parts, step)
            for i, leaf in zip(entry.handles, made, strict=True):
                new[i] = leaf
        return jax.tree.unflatten(self.treedef, new)


class Tags:
    """Rules, or a pytree prefix of constraints, for the pytrees they are asked about.

    Args:
        rules: name patterns or layer classes to constraints.
        tree: a pytree prefix of constraints; None leaves a part free.
        model: the flax nnx or equinox module that knows the layers.
        metric: of tags that do not say which.

    Raises:
        ValueError: both or neither of `rules` and `tree` are given.
        TypeError: `model` is not a module.
    """

    def __init__(self, rules: Rules | None, tree: Any, model: Any, metric: str | None = None) -> None:
        check_metric_name(metric, "projected")
        if (rules is None) == (tree is None):
            raise ValueError("give either rules or tree=, the constraints by name or as a pytree prefix")
        if model is not None and not is_module(model):
            raise TypeError(f"model= is an nnx.Module or an equinox Module, not {type(model).__name__}")
        self._rules, self._tree, self._model, self._metric = rules, tree, model, metric
        self._seen: dict[Any, Tagged] = {}
        self._whole: dict[Any, Plan] = {}  # the last plan of each structure outside of jax.shard_map

    def of(self, params: Any) -> tuple[list[Any], Tagged]:
        """The leaves of `params` and what holds for them.

        Raises:
            TypeError, ValueError: the rules do not fit the tree; inside of `jax.shard_map`, a group is in parts.
        """
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_skipped)
        key = (treedef, tuple((leaf.shape, leaf.dtype) if is_array(leaf) else None for leaf in leaves))
        try:
            found = self._seen.get(key)
        except (TypeError, ValueError):  # a static field that cannot be hashed or compared
            return leaves, self._resolve(params, treedef)
        if found is None:
            found = self._resolve(params, treedef)
            manual = is_manual()
            if manual:
                _refuse_parts(found.plan, self._whole.get(treedef, ()))
            if len(self._seen) == _MOST:
                self._seen.clear()
                self._whole.clear()
            self._seen[key] = found
            if not manual:
                self._whole[treedef] = found.plan
        return leaves, found

    def _resolve(self, params: Any, treedef: Any) -> Tagged:
        found = parameters(params, self._model, self._prefix(params))
        names = {p.handle: p.name for p in found if jnp.issubdtype(p.dtype, jnp.inexact)}
        return Tagged(treedef, resolve(self._rules, found, metric=self._metric), names)

    def _prefix(self, params: Any) -> dict[int, tuple[str, Tag]]:
        """What `tree` asks for, and where, by the position of the leaf."""
        if self._tree is None:
            return {}
        choices = jax.tree_util.tree_flatten_with_path(self._tree, is_leaf=is_skipped)[0]
        prefix: Any = jax.tree.structure(self._tree, is_leaf=is_skipped)
        try:
            parts = prefix.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"tree= is not a prefix of the parameters: {error}") from None
        spread: list[Any] = []
        for choice, part in zip(choices, parts, strict=True):
            spread += [choice] * len(jax.tree.leaves(part, is_leaf=is_skipped))
        tagged = ((i, path, choice) for i, (path, choice) in enumerate(spread) if not is_skipped(choice))
        return {i: (f"tree={jax.tree_util.keystr(path)}", as_tag(choice)) for i, path, choice in tagged}


def _refuse_parts(plan: Iterable[PlanEntry], wholes: Iterable[PlanEntry]) -> None:
    """Raise ValueError where a group has fewer entries along an axis than in the whole parameters."""
    for part, whole in zip(plan, wholes, strict=False):
        ndim = len(part.shape)
        if part.names == whole.names and ndim == len(whole.shape):
            for d in part.constraint.group_axes(ndim):
                if part.shape[d] != whole.shape[d]:
                    raise ValueError(
                        f"{part.name}: {part.constraint} holds along axis {d}, of which jax.shard_map shows only "
                        f"{part.shape[d]} of {whole.shape[d]} entries: make the update outside of jax.shard_map, or "
                        "gather the parameter and its gradient first (jax.lax.all_gather with tiled=True)"
                    )


def when_due(entry: PlanEntry, step: Any, do: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """What one of the functions gives, by whether the entry is to be projected after so many steps, maybe traced."""
    due = True if step is None else entry.due(step)
    if isinstance(due, jax.Array):
        return jax.lax.cond(due, do, otherwise)
    return do() if due else otherwise()
