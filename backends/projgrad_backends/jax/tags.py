"""Which constraint holds for which leaf of a pytree, resolved once per structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from projgrad.constraint import Constraint
from projgrad.function import as_constraint
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules, resolve
from projgrad_backends.jax.parameters import is_array, is_module, is_skipped, parameters

__all__ = ["Tagged", "Tags"]

_MOST = 16  # structures remembered; one optimizer sees one or two


@dataclass(frozen=True)
class Tagged:
    """The plan of a pytree, with the positions of its entries among the leaves."""

    treedef: Any
    positions: tuple[int, ...]
    plan: Plan

    def check(self, leaves: list[Any]) -> None:
        """Raise what projecting the leaves would raise, with the name: a function may return another shape."""
        for i, entry in zip(self.positions, self.plan, strict=True):
            try:
                jax.eval_shape(entry.constraint.project, jax.ShapeDtypeStruct(entry.shape, leaves[i].dtype))
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{entry.name} cannot have {entry.constraint}: {error}") from error

    def map(self, do: Callable[..., Any], *leaves: list[Any]) -> Any:
        """The tree of the last of `leaves`, with ``do(constraint, *leaf)`` in the place of constrained ones."""
        new = list(leaves[-1])
        for i, entry in zip(self.positions, self.plan, strict=True):
            new[i] = do(entry.constraint, *(given[i] for given in leaves))
        return jax.tree.unflatten(self.treedef, new)


class Tags:
    """Rules, or a pytree prefix of constraints, for the pytrees they are asked about.

    Args:
        rules: name patterns or layer classes to constraints.
        tree: a pytree prefix of constraints; None leaves a part free.
        model: the flax nnx or equinox module that knows the layers.

    Raises:
        ValueError: both or neither of `rules` and `tree` are given.
        TypeError: `model` is not a module.
    """

    def __init__(self, rules: Rules | None, tree: Any, model: Any) -> None:
        if (rules is None) == (tree is None):
            raise ValueError("give either rules or tree=, the constraints by name or as a pytree prefix")
        if model is not None and not is_module(model):
            raise TypeError(f"model= is an nnx.Module or an equinox Module, not {type(model).__name__}")
        self._rules, self._tree, self._model = rules, tree, model
        self._seen: dict[Any, Tagged] = {}

    def of(self, params: Any) -> tuple[list[Any], Tagged]:
        """The leaves of `params` and what holds for them.

        Raises:
            TypeError, ValueError: the rules do not fit the tree.
        """
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_skipped)
        key = (treedef, tuple((leaf.shape, leaf.dtype) if is_array(leaf) else None for leaf in leaves))
        try:
            found = self._seen.get(key)
        except (TypeError, ValueError):  # a static field that cannot be hashed or compared
            return leaves, self._resolve(params, treedef)
        if found is None:
            found = self._resolve(params, treedef)
            if len(self._seen) == _MOST:
                self._seen.clear()
            self._seen[key] = found
        return leaves, found

    def _resolve(self, params: Any, treedef: Any) -> Tagged:
        known = parameters(params, self._model, self._prefix(params))
        positions, described = tuple(known), tuple(known.values())
        found = resolve(self._rules, described)
        plan = Plan([PlanEntry(described[n].name, described[n].shape, constraint) for n, constraint in found.items()])
        return Tagged(treedef, tuple(positions[n] for n in found), plan)

    def _prefix(self, params: Any) -> dict[int, Constraint]:
        """The constraints of `tree`, by the position of the leaf."""
        if self._tree is None:
            return {}
        choices: list[Any] = jax.tree.leaves(self._tree, is_leaf=is_skipped)
        prefix: Any = jax.tree.structure(self._tree, is_leaf=is_skipped)
        try:
            parts = prefix.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"tree= is not a prefix of the parameters: {error}") from None
        spread: list[Any] = []
        for choice, part in zip(choices, parts, strict=True):
            spread += [choice] * len(jax.tree.leaves(part, is_leaf=is_skipped))
        return {i: as_constraint(choice) for i, choice in enumerate(spread) if not is_skipped(choice)}
