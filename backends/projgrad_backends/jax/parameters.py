"""The leaves of a pytree as parameters: their names, layers and shapes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import optax

from projgrad.rules import Parameter, Use
from projgrad.tag import Tag
from projgrad_backends.jax.incoming import by_layer, by_name

__all__ = ["is_array", "is_module", "is_skipped", "opened", "parameters"]


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


def opened(params: Any, model: Any) -> tuple[Any, Any]:
    """The parameters of an nnx.Module as a pytree, and the module in the place of `model`."""
    if is_module(params, "flax.nnx"):
        nnx = sys.modules["flax.nnx"]
        return nnx.state(params, nnx.Param), params
    return params, model


def parameters(params: Any, model: Any, tags: Mapping[int, tuple[str, Tag]]) -> list[Parameter]:
    """The arrays among the leaves of `params` as parameters, with their positions as handles.

    Args:
        params: the pytree; leaves that are no arrays are skipped.
        model: the module that tells the layers, or None for the tree itself.
        tags: what `tree=` asks for, by position, with words that say where.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_skipped)[0]
    shared = _shared(model) if is_module(model, "flax.nnx") else []
    return [
        replace(_parameter(params, model, shared, path, leaf), tags=(tags[i],) if i in tags else (), handle=i)
        for i, (path, leaf) in enumerate(leaves)
        if is_array(leaf)
    ]


def _parameter(params: Any, model: Any, shared: _Shared, path: tuple[Any, ...], leaf: Any) -> Parameter:
    labels = [_label(key) for key in path]
    own = _walk(params, labels[:-1]) if path else []
    boxed = bool(own) and _is_box(own[-1])
    aliases = (_join(labels),) if boxed else ()
    labels = labels[:-1] if boxed else labels
    uses: list[Use] = []
    refused = ""
    for names in _names(labels, shared):
        nodes = own[: len(names)] if model is None else _walk(model, names)[:-1]
        layer, attribute = _layer(nodes, names)
        name = _join(names)
        if model is not None and not nodes:
            incoming: tuple[int, ...] | str = f'axis="incoming" needs the layer, but model= has no {name!r}'
        elif layer is None or isinstance(nodes[-1], Mapping):
            incoming = by_name(name, len(leaf.shape))
        else:
            incoming = by_layer(layer, attribute, len(leaf.shape))
        uses.append(Use(name, incoming, layer, attribute, aliases=() if uses else aliases))
        refused = refused or _refused(nodes, attribute)
    return Parameter(tuple(uses), tuple(leaf.shape), leaf.dtype, refused)


_Shared = list[list[tuple[str | int, ...]]]  # the paths of each thing that a model holds in several places


def _shared(model: Any) -> _Shared:
    groups = sys.modules["flax.nnx"].find_duplicates(model)
    # not what contains itself, whose names have no end
    return [paths for paths in groups if not any(a == b[: len(a)] for a in paths for b in paths if a is not b)]


def _names(labels: list[str | int], shared: _Shared) -> list[list[str | int]]:
    """All the names of a parameter: a tied one is a single leaf, under the first of them."""
    names = [labels]
    for known in names:  # which grows on the way
        for paths in shared:
            here = [path for path in paths if tuple(known[: len(path)]) == path]
            others = [[*path, *known[len(here[0]) :]] for path in paths] if here else []
            names += [other for other in others if other not in names]
    return names


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
