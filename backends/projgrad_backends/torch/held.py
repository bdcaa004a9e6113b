"""Whether what an optimizer holds can be projected, and is what the model computes with."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from projgrad.plan import PlanEntry
from projgrad_backends.torch.sharded import coupled_axes, is_sharded

__all__ = [
    "Places",
    "Position",
    "Watch",
    "by_position",
    "check_not_flat",
    "check_optimizer",
    "is_opaque",
    "refuse_opaque",
    "warn_without_gradients",
]

Position = tuple[int, int]  # of a parameter in the groups, since the tensors there may be exchanged
_Place = tuple["weakref.ref[nn.Module]", str, str]  # the layer, its path in the model, and the name there

_ANEW = (
    "Shard, move or load the model first (a state with assign=True, and any new parameter, takes the place of the old "
    "one), then make the optimizer and wrap it anew"
)


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError for what is no optimizer that can be wrapped."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"ProjectedOptimizer wraps a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise TypeError(
            f"{type(optimizer).__name__} only passes on to another optimizer: wrap that one first (and for accelerate, "
            "give the ProjectedOptimizer to accelerator.prepare())"
        )


def check_not_flat(entries: Iterable[PlanEntry], groups: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where a group is not a group any more in the flat parameters that FSDP1 makes."""
    for entry in entries:
        for name, (g, i) in zip(entry.names, entry.handles, strict=True):
            if not _divisible(entry) and _is_flat(groups[g]["params"][i]):
                raise ValueError(
                    f"{name}: FullyShardedDataParallel (FSDP1) keeps it flat and in parts, in which {entry.constraint} "
                    "has no meaning: use fully_shard (FSDP2), or leave it free with a rule that maps it to None"
                )


def _is_flat(x: Tensor) -> bool:
    return getattr(x, "_fsdp_flattened", False) or getattr(x, "_is_flat_param", False)


def _divisible(entry: PlanEntry) -> bool:
    """Whether it holds for every entry by itself, wherever that is in the array."""
    return entry.layout is None and coupled_axes(entry.constraint, len(entry.shape)) == ()


def refuse_opaque(located: Iterable[tuple[Sequence[Tensor], PlanEntry, Any]], error: NotImplementedError) -> None:
    """Raise TypeError where the parameters are of a class that lacks an operation; else return."""
    for tensors, entry, _ in located:
        for name, x in zip(entry.names, tensors, strict=True):
            if is_opaque(x):
                raise TypeError(
                    f"{name}: {type(x).__name__}, such as a quantized weight, cannot be projected, as it lacks an "
                    "operation. Leave it free with a rule that maps it to None, or train a floating-point weight"
                ) from error


def is_opaque(x: Tensor) -> bool:
    """Whether it is of a class that has operations of its own, such as a quantized weight."""
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_sharded([x])


def by_position(entry: PlanEntry, positions: Mapping[int, Position]) -> PlanEntry:
    """The entry with positions as its handles, given those of the tensors by id.

    Raises:
        ValueError: not all of the tensors have one.
    """
    missing = [name for name, x in zip(entry.names, entry.handles, strict=True) if id(x) not in positions]
    if missing:
        raise ValueError(
            f"{entry.name}: one set over several parameters, but {', '.join(missing)} would not be held by the same "
            "optimizer (or not in the same new group)"
        )
    return replace(entry, handles=tuple(positions[id(x)] for x in entry.handles))


# -- at every step ------------------------------------------------------------------------------------------------


class Places:
    """Where in a model the parameters of an optimizer are, for those that are there.

    Args:
        model: the model, which is not kept alive; None for no places.
        groups: the param groups.
    """

    def __init__(self, model: nn.Module | None = None, groups: Sequence[dict[str, Any]] = ()) -> None:
        self._reference = None if model is None else weakref.ref(model)
        self._of: dict[Position, list[_Place]] = {}
        self.find(groups)

    @property
    def model(self) -> nn.Module | None:
        """The model, if there still is one."""
        return None if self._reference is None else self._reference()

    def find(self, groups: Sequence[dict[str, Any]]) -> None:
        """Look for the parameters that have no place yet."""
        model = self.model
        found: dict[int, list[_Place]] = {}
        for path, layer in () if model is None else model.named_modules():
            for attribute, x in layer._parameters.items():
                if x is not None:
                    found.setdefault(id(x), []).append((weakref.ref(layer), path, attribute))
        for g, group in enumerate(groups):
            for i, x in enumerate(group["params"]):
                if id(x) in found:
                    self._of.setdefault((g, i), found[id(x)])

    def __bool__(self) -> bool:
        return bool(self._of)

    def of(self, position: Position) -> list[_Place]:
        """Where a parameter is."""
        return self._of.get(position, [])

    def check(self, name: str, x: Tensor, position: Position) -> None:
        """Raise RuntimeError where the model computes with something else than `x`."""
        alive, others = False, False
        for reference, path, attribute in self.of(position):
            layer = reference()
            layer = self._successor(path) if layer is None else layer
            now = None if layer is None else layer._parameters.get(attribute)
            if now is x or (now is not None and _is_unsharded(now, x)):
                alive = True
            elif now is not None:
                others = True
            elif layer is not None and _is_computed(layer, attribute) and not _is_flat(x):
                raise RuntimeError(
                    f"{name}: it was parametrized (or normalised, or pruned) after the optimizer was wrapped, so what "
                    "is projected is not the weight but what it is computed from; leave it free with a rule that maps "
                    "it to None, in set_rules(), or remove the parametrization"
                )
        if others and not alive:
            raise RuntimeError(
                f"{name}: the tensor that the optimizer holds is not the model's any more, so the model's is neither "
                f"trained nor projected. {_ANEW}"
            )

    def _successor(self, path: str) -> nn.Module | None:
        """The layer in the place of one that is no more."""
        try:
            return None if self.model is None else self.model.get_submodule(path)
        except AttributeError:
            return None


class Watch:
    """What is to be checked of the parameters of a plan before a step.

    Args:
        entries: of the plan.
        places: where the parameters are.
    """

    def __init__(self, entries: Iterable[PlanEntry], places: Places) -> None:
        self._entries, self._places = list(entries), places
        self._each = [
            (at, torch.Size(shape), places.of(at), entry)
            for entry in self._entries
            for at, shape in zip(entry.handles, entry.shapes, strict=True)
        ]

    def check(self, groups: Sequence[dict[str, Any]]) -> None:
        """Look quickly whether all is as it was, and closely where it is not.

        Raises:
            RuntimeError: they are not those of the model any more, or cannot be what the constraint was tagged for.
        """
        held = [group["params"] for group in groups]
        if torch.compiler.is_compiling():
            for entry in self._entries:
                _check_alive(entry, held, self._places)
            return
        for (g, i), shape, places, entry in self._each:
            x = held[g][i]
            same = x.shape == shape and not x.is_meta
            for reference, _, attribute in places:
                layer = reference()
                same = same and layer is not None and layer._parameters.get(attribute) is x
            if not same:
                _check_alive(entry, held, self._places)


def _check_alive(entry: PlanEntry, held: Sequence[Sequence[Tensor]], places: Places) -> None:
    for name, shape, position in zip(entry.names, entry.shapes, entry.handles, strict=True):
        x = held[position[0]][position[1]]
        if x.shape != shape and not _divisible(entry):
            raise RuntimeError(
                f"{name}: its shape is {tuple(x.shape)}, but was {shape} when it was wrapped. If it was sharded by "
                "FullyShardedDataParallel (FSDP1), use fully_shard (FSDP2), and wrap the optimizer after it; if it was "
                "resized, call set_rules()"
            )
        if x.grad is None and x.is_meta:
            raise RuntimeError(f"{name}: the optimizer holds a tensor on the meta device, which has no values. {_ANEW}")
        if x.grad is None or not torch.compiler.is_compiling():
            places.check(name, x, position)


def warn_without_gradients(optimizer: Optimizer) -> None:
    """Warn where there is a first step without any gradient: without a model, that is all that dead parameters show."""
    if not optimizer.state and all(x.grad is None for group in optimizer.param_groups for x in group["params"]):
        warnings.warn(
            "no parameter that the optimizer holds has a gradient. If the model was sharded, moved or reloaded after "
            "the optimizer was made, it holds none of the model's: make it anew; with model=, that is an error",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_computed(layer: nn.Module, attribute: str) -> bool:
    """Whether what is no parameter is a tensor nevertheless, as parametrizations, old and new, leave it."""
    return parametrize.is_parametrized(layer, attribute) or isinstance(vars(layer).get(attribute), Tensor)


def _is_unsharded(y: Any, x: Any) -> bool:
    """Whether `y` may be what FSDP2 has in the place of its part `x` between a forward pass and the next sharding."""
    return is_sharded([x]) and not (is_sharded([y]) and y.placements == x.placements and y.device_mesh == x.device_mesh)
