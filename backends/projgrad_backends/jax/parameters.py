"""The leaves of a pytree as parameters: their names, layers and shapes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import optax

from projgrad.constraint import Constraint
from projgrad.rules import Parameter, Use
from projgrad_backends.jax.incoming import by_layer, by_name

__all__ = ["is_array", "is_module", "is_skipped", "parameters"]


def is_skipped(leaf: Any) -> bool:
    """Whether this stands where a parameter has been taken out of the tree, by equinox or `optax.masked`."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, traced or abstract ones included."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_module(thing: Any, *packages: str) -> bool:
    """Whether `thing` is a module of one of these packages (by default: flax.nnx and equinox), if they are in use."""
    found = (sys.modules.get(package) for package in packages or ("flax.nnx", "equinox"))
    return isinstance(thing, tuple(package.Module for package in found if package is not None))


def parameters(params: Any, model: Any, tags: Mapping[int, Constraint]) -> dict[int, Parameter]:
    """The arrays among the leaves of `params` as parameters, by position.

    Args:
        params: the pytree; leaves that are no arrays are skipped.
        model: the module that tells the layers, or None for the tree itself.
        tags: what `tree=` asks for, by position.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_skipped)[0]
    return {
        i: _parameter(params, model, path, leaf, tags.get(i)) for i, (path, leaf) in enumerate(leaves) if is_array(leaf)
    }


def _parameter(params: Any, model: Any, path: tuple[Any, ...], leaf: Any, tag: Constraint | None) -> Parameter:
    nodes = _walk(params, [_label(key) for key in path[:-1]]) if path else []
    boxed = bool(nodes) and _is_box(nodes[-1])
    labels = [_label(key) for key in (path[:-1] if boxed else path)]
    nodes = nodes[: len(labels)] if model is None else _walk(model, labels)[:-1]
    layer, attribute = _layer(nodes, labels)
    name, aliases = _join(labels), (_join([_label(key) for key in path]),) if boxed else ()
    if model is not None and not nodes:
        incoming: tuple[int, ...] | str = f'axis="incoming" needs the layer, but model= has no {name!r}'
    elif layer is None or isinstance(nodes[-1], Mapping):
        incoming = by_name(name, len(leaf.shape))
    else:
        incoming = by_layer(layer, attribute, len(leaf.shape))
    use = Use(name, incoming, layer, attribute, aliases=aliases)
    tags = () if tag is None else (("tree=", tag),)
    return Parameter((use,), tuple(leaf.shape), leaf.dtype, _refused(nodes, attribute), tags)


def _layer(nodes: list[Any], labels: list[str | int]) -> tuple[Any, str]:
    """The innermost node that is no plain container, and the name of the leaf there."""
    depths = [i for i, node in enumerate(nodes) if not isinstance(node, Mapping | list | tuple)]
    return (nodes[depths[-1]], _join(labels[depths[-1] :])) if depths else (None, "")


def _refused(nodes: list[Any], attribute: str) -> str:
    for node in nodes:
        if type(node).__name__ in ("WeightNorm", "SpectralNorm") and attribute in ("weight", "kernel"):
            return f"{type(node).__name__} rescales this weight before it is used, so a constraint on it has no effect"
    return ""


def _label(key: Any) -> str | int:
    """The attribute, key or index that an entry of a key path stands for."""
    for kind in ("key", "name", "idx"):
        if hasattr(key, kind):
            return getattr(key, kind)
    return str(key)


def _join(labels: list[str | int]) -> str:
    return "/".join(map(str, labels))


def _walk(root: Any, labels: list[str | int]) -> list[Any]:
    """The nodes on the way from `root`, both ends included; empty where there is no such way."""
    nodes = [root]
    try:
        for label in labels:
            node = nodes[-1]
            by_name = isinstance(label, str) and not isinstance(node, Mapping)
            nodes.append(getattr(node, str(label)) if by_name else node[label])
    except (AttributeError, IndexError, KeyError, TypeError):
        return []
    return nodes


def _is_box(node: Any) -> bool:
    """Whether this is a flax object that holds an array with its metadata."""
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    return isinstance(node, (getattr(nnx, "Variable", ()), getattr(meta, "AxisMetadata", ())))
