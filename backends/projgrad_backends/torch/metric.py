"""By what a torch optimizer divides each entry of its step, which is the metric that its steps are taken in.

After ``x - D g``, with a positive diagonal matrix D, it is the projection in the metric ``h = 1 / D`` that leaves the
constrained minimum where it is. Only ratios matter, so what all entries of a parameter have in common is left out. In
sets over several parameters, that is right as long as it is the same in each of them, which it is but for the learning
rates of their groups, which `weights` divides by, and Adafactor's factors for whole parameters, which it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from projgrad.plan import PlanEntry
from projgrad.scaling import look_up
from projgrad.tag import EUCLIDEAN
from projgrad_backends.torch.inplace import Located
from projgrad_backends.torch.namespace import xp

__all__ = ["Scaling", "check_real", "located", "register_metric", "scaling_of", "weights"]

Scaling = Callable[[dict[str, Any], dict[str, Any]], Tensor | None]
_F = TypeVar("_F", bound=Scaling)

_known: dict[type[Optimizer], Scaling | str | None] = {}  # a text says why there is none, None that all are alike


def register_metric(optimizer: type[Optimizer]) -> Callable[[_F], _F]:
    """Say by what an optimizer divides the entries of its steps, for ``ProjectedOptimizer(..., metric="optimizer")``.

    It holds for the classes that derive from `optimizer` too, as long as they are not registered themselves.

    The decorated function is called after a step for each parameter that has a state, with this state and the param
    group (both as the optimizer keeps them). It returns what the step was divided by, a positive tensor that broadcasts
    to the parameter, or None where that is the same for all entries. A factor that all entries have in common does not
    matter, nor does the learning rate. The function must not change the state, and should not wait for the device, as
    ``.item()`` does.

    Args:
        optimizer: the class.

    Raises:
        TypeError: `optimizer` is not a class of torch optimizers.

    Examples:
        >>> @register_metric(MyAdam)
        ... def scaling(state, group):
        ...     return state["second_moment"].sqrt() + group["eps"]
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(f"register_metric takes a class that derives from torch.optim.Optimizer, not {optimizer!r}")

    def register(function: _F) -> _F:
        _known[optimizer] = function
        return function

    return register


def check_real(optimizer: Optimizer, entries: Iterable[PlanEntry]) -> None:
    """Raise ValueError where the metric of an optimizer that has one is asked for, and parameters are complex."""
    for entry in entries:
        if entry.in_metric and scaling_of(type(optimizer)) is not None:
            for name, (g, i) in zip(entry.names, entry.handles, strict=True):
                if optimizer.param_groups[g]["params"][i].is_complex():
                    raise ValueError(
                        f"{name}: the optimizer scales real and imaginary parts by themselves, so there is no "
                        f'metric of complex numbers; give it as Tag({entry.constraint}, metric="{EUCLIDEAN}")'
                    )


def scaling_of(optimizer: type[Optimizer]) -> Scaling | None:
    """What is registered for a class of optimizers, or the nearest one that it derives from; None if all are alike.

    Raises:
        ValueError: nothing is, or it has no diagonal metric.
    """
    return look_up(_known, optimizer, "torch")


@torch.compiler.disable  # which keeps the state of one parameter, and may give it for another
def weights(optimizer: Optimizer, owned: Sequence[tuple[Tensor, dict[str, Any]]]) -> list[Tensor | None]:
    """The weight of each entry in the metric of the last step, in the dtype of computation.

    Args:
        optimizer: whose state it is read from.
        owned: the parameters of one set, each with its param group.

    Returns:
        For each parameter a tensor of its shape; None if all entries are alike, or it has no state yet.
    """
    found = [_weights(optimizer, x, group) for x, group in owned]
    if all(group is owned[0][1] for _, group in owned):
        return found
    return [None if h is None else h / _rate(group) for h, (_, group) in zip(found, owned, strict=True)]


def located(optimizer: Optimizer, entries: Iterable[PlanEntry]) -> Iterator[Located]:
    """What there is now of entries of a plan, whose handles are positions in the param groups of an optimizer."""
    groups = optimizer.param_groups
    held = [group["params"] for group in groups]
    for entry in entries:
        tensors = [held[g][i] for g, i in entry.handles]
        if not entry.in_metric or entry.constraint.axis == ():  # for single entries, it is the same in all
            yield tensors, entry, None
        else:
            owners = [groups[g] for g, _ in entry.handles]
            yield tensors, entry, weights(optimizer, list(zip(tensors, owners, strict=True)))


def _rate(group: dict[str, Any]) -> Any:
    """The learning rate, which tells the groups of one set apart; not 0."""
    rate = group.get("lr", 1.0)
    return rate.clamp(min=1e-12) if isinstance(rate, Tensor) else max(rate, 1e-12)


def _weights(optimizer: Optimizer, x: Tensor, group: dict[str, Any]) -> Tensor | None:
    scaling, state = scaling_of(type(optimizer)), optimizer.state.get(x)
    h = scaling(state, group) if scaling is not None and state else None
    if h is None:
        return None
    try:
        h = h.detach() if h.shape == x.shape else h.detach().broadcast_to(x.shape)
    except RuntimeError:
        raise ValueError(
            f"the metric of {type(optimizer).__name__} has the shape {tuple(h.shape)}, which does not broadcast to a "
            f"parameter of shape {tuple(x.shape)}"
        ) from None
    return h.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


# -- the optimizers of PyTorch, each as its own step computes it ------------------------------------------------------


def _steps(state: dict[str, Any]) -> Any:
    """The number of steps, at least 1, as none may be left of a skipped one: a float where that waits for no device."""
    step = state["step"]
    if isinstance(step, Tensor):
        if not xp.can_look(step):
            return step.clamp(min=1)
        step = step.item()
    return max(float(step), 1.0)


def _corrected_root(v: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    correction = 1 - group["betas"][1] ** _steps(state)
    return xp.upcast(v).sqrt() / correction**0.5 + group["eps"]


@register_metric(optim.Adam)
@register_metric(optim.AdamW)
def _adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return _corrected_root(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"], state, group)


@register_metric(optim.NAdam)
def _nadam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return _corrected_root(state["exp_avg_sq"], state, group)


@register_metric(optim.RAdam)
def _radam(state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
    beta, step = group["betas"][1], _steps(state)
    longest = 2 / (1 - beta) - 1
    rectified = longest - 2 * step * beta**step / (1 - beta**step) > 5  # else it was a step of plain momentum
    if isinstance(rectified, bool) and not rectified:
        return None
    h = _root(state["exp_avg_sq"], group)  # eps is added before the bias is corrected
    return torch.where(rectified.to(h.device, non_blocking=True), h, 1.0) if isinstance(rectified, Tensor) else h


@register_metric(optim.SparseAdam)
def _sparse_adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return _root(state["exp_avg_sq"], group)  # as above


@register_metric(optim.Adamax)
def _adamax(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return state["exp_inf"]


@register_metric(optim.Adagrad)
def _adagrad(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return _root(state["sum"], group)


@register_metric(optim.RMSprop)
def _rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    v = xp.upcast(state["square_avg"])
    if group["centered"]:
        mean = xp.upcast(state["grad_avg"])
        v = v.addcmul(mean, mean, value=-1).clamp(min=0)  # below 0 by rounding
    return _root(v, group)


@register_metric(optim.Adadelta)
def _adadelta(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    # The step multiplied by what `acc_delta` was before it, which is not kept: the two differ by a factor between
    # rho and 1 + rho, and not at all where the steps settle.
    eps = group["eps"]
    return ((xp.upcast(state["square_avg"]) + eps) / (xp.upcast(state["acc_delta"]) + eps)).sqrt()


@register_metric(optim.Adafactor)
def _adafactor(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    whole, least = state.get("variance"), group["eps"][0]
    if least is None:
        least = torch.finfo((state["row_var"] if whole is None else whole).dtype).eps
    if whole is not None:
        v = xp.upcast(whole)
    else:
        rows, columns = xp.upcast(state["row_var"]), xp.upcast(state["col_var"])
        v = rows @ columns / rows.mean(dim=-2, keepdim=True).clamp(min=least)
    return v.clamp(min=least * least).sqrt()


def _root(v: Tensor, group: dict[str, Any]) -> Tensor:
    return xp.upcast(v).sqrt() + group["eps"]


_known[optim.SGD] = _known[optim.ASGD] = None
_known[optim.Rprop] = "its steps have the sign of the gradient, but not its size"
_known[optim.LBFGS] = "its steps mix the entries of the gradient"
if hasattr(optim, "Muon"):
    _known[optim.Muon] = "its steps mix the entries of the gradient"
