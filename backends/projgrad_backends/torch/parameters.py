"""The parameters of a module with their names, layers and tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from projgrad.constraint import Constraint
from projgrad.plan import Plan
from projgrad.rules import Parameter, Rules, Use, resolve
from projgrad.tag import EUCLIDEAN, Joint, Tag, as_tag
from projgrad_backends.torch.incoming import incoming
from projgrad_backends.torch.sharded import reshard

__all__ = ["constrain", "decided", "names_of", "of_model", "of_tensor", "resolved", "tag_of", "with_group_tag"]

_TAGS = (
    "_projgrad_constraints"  # on the module: tags on a Parameter are lost by deepcopy and load_state_dict(assign=True)
)
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.)")
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
_M = TypeVar("_M", bound=nn.Module)


def constrain(layer: _M, **constraints: Constraint | Tag | Callable[[Any], Any] | None) -> _M:
    """Tag parameters of a layer, so that `ProjectedOptimizer(..., model=model)` finds them.

    Args:
        layer: the module that holds the parameters.
        **constraints: parameter name to constraint, or to a `projgrad.Tag`; None removes a tag. "incoming" axes are
            looked up here and now.

    Returns:
        The layer itself.

    Raises:
        TypeError, ValueError: the layer has no such parameter, or the constraint does not fit it. No tag is changed.

    Examples:
        >>> constrain(model.fc1, weight=pg.MaxNorm(3.0), bias=pg.NonNeg())
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"constrain() takes a torch.nn.Module, not {type(layer).__name__}")
    tags = dict(getattr(layer, _TAGS, {}))
    for attribute, choice in constraints.items():
        tags.pop(attribute, None)
        if choice is not None:
            tags[attribute] = _bind(layer, attribute, as_tag(choice))
    setattr(layer, _TAGS, tags)
    return layer


def _bind(layer: nn.Module, attribute: str, tag: Tag) -> Tag:
    if isinstance(tag, Joint):
        raise ValueError(f"{tag} is for several parameters: give it as a rule that selects them all")
    if parametrize.is_parametrized(layer, attribute):
        raise ValueError(f"{type(layer).__name__}.{attribute}: {_PARAMETRIZED}")
    tensor = layer._parameters.get(attribute)
    if tensor is None:
        known = ", ".join(name for name, p in layer._parameters.items() if p is not None) or "none"
        raise ValueError(f"{type(layer).__name__} has no parameter {attribute!r}; its parameters are {known}")
    use = Use(f"{type(layer).__name__}.{attribute}", _incoming(layer, attribute, tensor))
    bound = resolve({"*": tag}, [_parameter((use,), tensor)])[0].tag
    return replace(bound, metric=tag.metric)  # which the optimizer decides, where the tag does not


def resolved(
    rules: Rules | None, parameters: Sequence[Parameter], *, unused: bool = False, metric: str | None = None
) -> Plan:
    """What `projgrad.rules.resolve` finds, where it can be done in memory.

    Raises:
        TypeError, ValueError: as there, or parameters in one set are on different devices.
    """
    plan = resolve(rules, parameters, unused=unused, metric=metric)
    for entry in plan:
        devices = {name: str(tensor.device) for name, tensor in zip(entry.names, entry.handles, strict=True)}
        if len(set(devices.values())) > 1:
            shown = ", ".join(f"{name} is on {device}" for name, device in devices.items())
            raise ValueError(f"{entry.tag} holds over parameters on different devices: {shown}")
    return plan


_PARAMETRIZED = (
    "this weight is parametrized (or normalised, or pruned), so what the optimizer holds is not the weight but what it "
    "is computed from; leave it free with a rule that maps it to None, or remove the parametrization"
)


def with_group_tag(parameter: Parameter, position: tuple[int, int] | None, tags: Sequence[Tag | None]) -> Parameter:
    """A parameter with what the tag of its param group says too, given its position there, if any, and all tags."""
    tag = None if position is None else tags[position[0]]
    if position is None or tag is None:
        return parameter
    return replace(parameter, tags=(*parameter.tags, (f"its param group, number {position[0]},", tag)))


def of_model(model: nn.Module) -> list[Parameter]:
    """Every parameter of a module, once, with the tensor as its handle; tied ones with all the names they go by."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    reshard(model)
    uses: dict[int, list[Use]] = {}
    tensors: dict[int, torch.Tensor] = {}
    computed: set[int] = set()
    inside = isinstance(model, _PARALLEL)
    for prefix, layer in model.named_modules(remove_duplicate=False):
        for attribute, tensor in layer._parameters.items():
            if tensor is not None:
                tensors[id(tensor)] = tensor
                uses.setdefault(id(tensor), []).append(_use(prefix, layer, attribute, tensor, inside))
        for attribute, tensor in _behind(layer):
            tensors[id(tensor)] = tensor
            computed.add(id(tensor))
            uses.setdefault(id(tensor), []).append(_use(prefix, layer, attribute, tensor, inside))
    return [_parameter(tuple(uses[key]), tensor, computed=key in computed) for key, tensor in tensors.items()]


def _behind(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that attributes of a layer are computed from, each with the name of the attribute."""
    if parametrize.is_parametrized(layer):
        for attribute, chain in cast(nn.ModuleDict, layer.parametrizations).items():
            yield from ((attribute, p) for p in chain._parameters.values() if p is not None)
    for hook in layer._forward_pre_hooks.values():  # the older weight_norm, spectral_norm and pruning
        name = str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", ""))
        sources = (layer._parameters.get(f"{name}_{end}") for end in ("orig", "g", "v"))
        yield from ((name, p) for p in sources if p is not None)


def of_tensor(tensor: torch.Tensor, name: str, tags: tuple[tuple[str, Tag], ...] = ()) -> Parameter:
    """A parameter that is known by a name only."""
    reason = 'axis="incoming" needs the layer: pass model=, or give axes as numbers'
    return _parameter((Use(_plain(name), reason, aliases=(name, name.removeprefix("module."))),), tensor, tags)


def _use(prefix: str, layer: nn.Module, attribute: str, tensor: torch.Tensor, inside: bool) -> Use:
    name = f"{prefix}.{attribute}" if prefix else attribute
    plain = _plain(name.removeprefix("module.") if inside else name)
    tag = getattr(layer, _TAGS, {}).get(attribute)
    return Use(plain, _incoming(layer, attribute, tensor), layer, attribute, tag, (name,))


def _plain(name: str) -> str:
    """A name without what torch.compile and FSDP put into it."""
    return _WRAPPERS.sub("", name).lstrip(".")


def _incoming(layer: nn.Module, attribute: str, tensor: torch.Tensor) -> tuple[int, ...] | str:
    return "" if _lazy(tensor) else incoming(layer, attribute, tensor)


def _lazy(tensor: torch.Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)


def _parameter(
    uses: tuple[Use, ...],
    tensor: torch.Tensor,
    tags: tuple[tuple[str, Tag], ...] = (),
    computed: bool = False,
) -> Parameter:
    refused = ""
    if _lazy(tensor):
        refused = "its shape is not known yet: run the model once on an example before it is constrained"
    elif computed:
        refused = _PARAMETRIZED
    shape = () if _lazy(tensor) else tuple(tensor.shape)
    return Parameter(uses, shape, tensor.dtype, refused, tags, tensor)


def names_of(group: dict[str, Any], index: int) -> Iterable[str]:
    """The names of a param group's parameters; their positions where the optimizer was not given any."""
    return group.get("param_names") or [f"param_groups[{index}][{i}]" for i in range(len(group["params"]))]


def tag_of(group: dict[str, Any]) -> Tag | None:
    """What a param group says its parameters are constrained by."""
    tag = group.get("constraint")
    return None if tag is None else as_tag(tag)


def decided(tag: Tag, metric: str | None) -> Tag:
    """The tag with its metric by name, which is the given one if it has none."""
    return replace(tag, metric=tag.metric or metric or EUCLIDEAN)
