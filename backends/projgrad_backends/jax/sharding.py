"""Arrays whose sharding is part of their type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["automatic", "is_manual", "spec"]


def automatic(do: Callable[..., Any], like: Any, *given: Any) -> Any:
    """``do(*given)``, in which the compiler takes care of the explicit axes of a mesh, as it does of automatic ones.

    JAX refuses to sort, add up, slice or decompose along what is sharded over an explicit axis. Here what `do` needs is
    gathered for as long as it lasts, and what it returns is sharded again.

    Args:
        do: a function of arrays, which may not take traced ones from around it.
        like: arrays that the returned ones are to be sharded like, or None for those without dimensions.
        given: what `do` takes: arrays and anything else, in trees.
    """
    leaves, treedef = jax.tree.flatten(given)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    meshes = [_sharding(x).mesh for x in arrays.values() if any(spec(x))]
    if not meshes:
        return do(*given)

    def merged(arrays: dict[int, Any]) -> Any:
        return do(*jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]))

    out = jax.tree.map(lambda x: NamedSharding(meshes[0], spec(x)), like, is_leaf=lambda x: x is None)
    return jax.sharding.auto_axes(merged, axes=meshes[0].explicit_axes, out_sharding=out)(arrays)


def is_manual() -> bool:
    """Whether this is inside of `jax.shard_map`, where an array is the part of it that one device has."""
    mesh = jax.sharding.get_abstract_mesh() if hasattr(jax.sharding, "get_abstract_mesh") else None
    return bool(getattr(mesh, "manual_axes", ()))


def spec(x: Any) -> PartitionSpec:
    """The explicit axes that each dimension is sharded over."""
    return getattr(_sharding(x), "spec", PartitionSpec())


def _sharding(x: Any) -> Any:
    """What the type says; nothing in versions of JAX whose types say nothing."""
    return getattr(jax.typeof(x), "sharding", None) if hasattr(jax, "typeof") and hasattr(x, "shape") else None
