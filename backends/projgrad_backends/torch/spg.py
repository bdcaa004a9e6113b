"""The spectral projected gradient method as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from projgrad import spg
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules
from projgrad_backends.torch.optimizer import ProjectedOptimizer
from projgrad_backends.torch.sharded import is_sharded

__all__ = ["SPG"]

_COUNTS = ("max_iter", "max_eval", "history_size")
_OPTIONS = ("lr", "tolerance_grad", "tolerance_change", *_COUNTS)
Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]]


class SPG(ProjectedOptimizer):
    """Spectral projected gradient: minimises a function over sets, as L-BFGS does without constraints.

    For what `torch.optim.LBFGS` is used for: all data at once, few parameters, high accuracy. L-BFGS with a projection
    after its steps does not get to the constrained minimum, since its model of the curvature knows of no constraint.
    This method does: gradient steps, whose length is the inverse of the curvature along the last step, projected before
    the value is compared (Birgin, Martínez and Raydan 2000). It keeps no history of gradients.

    All values are compared with the largest of the last `history_size` ones, so that the function may go up for a
    while, but never above that. Every point is in the sets. On convex sets, what the method converges to is a
    stationary point, which is a minimum if the function is convex. On sets that are not convex, such as `UnitNorm`, it
    is a fixed point of ``P(x - t * gradient)`` for some t > 0, such as a weight parallel to its gradient; that may be a
    local minimum only, and even a saddle point where a set has several nearest points.

    The closure must give the same value for the same parameters as long as a step lasts: no new batch, no dropout.
    Where it gives another one at the start of the next step, older values are forgotten. An infinite or NaN value stops
    the step where it starts, and shortens it where it comes up later. In data-parallel training, the closure is to
    return the mean loss of all processes, since the value decides where they go; sharded parameters (FSDP) are an
    error at the first step.

    Args:
        params: parameters, named parameters, or param groups, which may have a ``"constraint"`` but no options of their
            own.
        rules: as in `ProjectedOptimizer`; what they leave free is minimised over without a constraint.
        model: as in `ProjectedOptimizer`.
        partial: as in `ProjectedOptimizer`.
        lr: what the lengths of all steps are multiplied by before they are tried.
        max_iter: the largest number of iterations in one `step`.
        max_eval: the largest number of calls of the closure in one `step`; ``max_iter * 3 // 2 + 1`` by default.
        tolerance_grad: a step ends where no entry of ``P(x - gradient) - x`` is larger. In float32 rounding may keep
            them above 1e-7.
        tolerance_change: a step ends after an iteration in which no entry moved farther. By default never, since
            lengths differ so much that one short iteration says little.
        history_size: how many values a new one is compared with; with 1, no iteration goes up.

    Raises:
        TypeError, ValueError: as `ProjectedOptimizer`; there is a constraint that changes with the step or is not
            strict (`every`, `Schedule`, `rate`, ``metric="optimizer"``); an option is out of range.

    Examples:
        >>> optimizer = SPG(model.parameters(), {"*.weight": pg.NonNeg()}, model=model, max_iter=500)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_of(model)
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure)
    """

    def __init__(
        self,
        params: Params,
        rules: Rules | None = None,
        *,
        model: torch.nn.Module | None = None,
        partial: bool = False,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 0.0,
        history_size: int = spg.WINDOW,
    ) -> None:
        search = _Search(
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=max_iter * 3 // 2 + 1 if max_eval is None else max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
        )
        super().__init__(search, rules, model=model, partial=partial)
        search.project = self.project

    def _check(self, entries: list[PlanEntry]) -> None:
        spg.check_plan(Plan(entries))
        super()._check(entries)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.inner.project = self.project  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"SPG({self.inner!r}\n{self.plan!r})"


class _Search(Optimizer):
    """The iterations, given how to project; their state is that of the first parameter, as in `torch.optim.LBFGS`."""

    project: Callable[[], None]

    def __init__(self, params: Params, **options: Any) -> None:
        if not options["lr"] > 0 or not all(options[name] >= 1 for name in _COUNTS):
            raise ValueError(f"SPG: lr must be above 0, and {', '.join(_COUNTS)} at least 1, but it is given {options}")
        super().__init__(params, options)

    def _options(self) -> dict[str, Any]:
        first, *others = self.param_groups
        for name in _OPTIONS:
            if any(group[name] != first[name] for group in others):
                raise ValueError(f"SPG: {name} differs between param groups, which one step goes along together")
        return first

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Up to `max_iter` iterations; returns what the closure gave before the first one."""
        options = self._options()
        params = [p for group in self.param_groups for p in group["params"]]
        if is_sharded(params):
            raise NotImplementedError(
                "SPG decides by sums over all entries, and does not gather them: unshard the model"
            )
        state = self.state[params[0]]
        evaluate = _Evaluate(closure, options["max_eval"])
        self.project()  # they may have been loaded
        value, gradient = evaluate(), _gradients(params)
        start = evaluate.loss
        values = state.get("values") or [value]
        if not spg.is_same(value, values[-1], evaluate.eps, np):
            values = [value]
        length = state.get("length") or float(spg.first_length(_largest(gradient), np))
        iterations = 0
        while iterations < options["max_iter"] and math.isfinite(value):
            path = _Path(params, gradient, options["lr"] * length, self.project)
            if path.is_stationary(options["tolerance_grad"]):
                break
            iterations += 1
            found = path.search(evaluate, value, max(values))
            length *= path.factor
            if found is None:
                length = length if evaluate.is_used_up else 0.0  # no point goes down: start anew with the next function
                break
            value, last, gradient = found, gradient, _gradients(params)
            values = [*values, value][-options["history_size"] :]
            bend = [new - old for new, old in zip(gradient, last, strict=True)]
            moved = _inner(path.change, path.change)
            length = float(spg.next_length(moved, _inner(path.change, bend), length, np))
            if _largest(path.change) <= options["tolerance_change"]:
                break
        state.update(
            length=length if math.isfinite(length) else 0.0,
            values=values,
            n_iter=state.get("n_iter", 0) + iterations,
            func_evals=state.get("func_evals", 0) + evaluate.count,
        )
        return start


class _Evaluate:
    """The closure, counted."""

    def __init__(self, closure: Callable[[], Any], most: int) -> None:
        self._closure = torch.enable_grad()(closure)
        self._most = most
        self.count = 0
        self.eps = 0.0
        self.loss: Any = None

    @property
    def is_used_up(self) -> bool:
        """Whether it was called as often as it may be."""
        return self.count >= self._most

    def __call__(self) -> float:
        self.loss = self._closure()
        self.count += 1
        self.eps = torch.finfo(self.loss.dtype if isinstance(self.loss, torch.Tensor) else torch.float64).eps
        return float(self.loss)


class _Path:
    """The points ``P(x - factor * length * gradient)``, of which the parameters become the one that is looked at."""

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        gradient: Sequence[torch.Tensor],
        length: float,
        project: Callable[[], None],
    ) -> None:
        self._params, self._gradient, self._length, self._project = params, gradient, length, project
        self._start = [p.clone() for p in params]
        self.factor = 1.0
        self.change = self._go(length)

    def _go(self, distance: float) -> list[torch.Tensor]:
        for p, x, g in zip(self._params, self._start, self._gradient, strict=True):
            p.copy_(x).add_(g, alpha=-distance)
        self._project()
        return [p - x for p, x in zip(self._params, self._start, strict=True)]

    def _back(self) -> None:
        for p, x in zip(self._params, self._start, strict=True):
            p.copy_(x)

    def is_stationary(self, tol: float) -> bool:
        """Whether no entry of ``P(x - gradient) - x`` is above `tol`; then the parameters are x again."""
        # its norm is at least that of the change over max(length, 1), so mostly there is no need to project again
        if not _largest(self.change) <= tol * max(self._length, 1.0):
            return False
        found = _largest(self._go(1.0)) <= tol
        if found:
            self._back()
        else:
            self._go(self._length)
        return found

    def search(self, evaluate: _Evaluate, value: float, highest: float) -> float | None:
        """The value at the first point that is low enough; None, and back at x, when the calls are used up."""
        while 0 < _largest(self.change) < math.inf and not evaluate.is_used_up:
            new, slope = evaluate(), _inner(self._gradient, self.change)
            if spg.is_sufficient(new, highest, slope, evaluate.eps, np):
                return new
            self.factor = float(spg.shorter(self.factor, value, new, slope, np))
            self.change = self._go(self.factor * self._length)
        self._back()
        return None


def _gradients(params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, since the closure may write the next ones to the same memory."""
    found = (torch.zeros_like(p) if p.grad is None else p.grad for p in params)
    return [g.to_dense() if g.is_sparse else g.clone() for g in found]


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """The largest absolute value of any entry; NaN where there is one. It waits for the device once."""
    found = [x.abs().max() for x in tensors if x.numel()]
    return float(torch.stack(_alike(found)).max()) if found else 0.0


def _inner(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor]) -> float:
    """The inner product of all entries, of complex ones by their parts. It waits for the device once."""
    return float(torch.stack(_alike([torch.dot(_flat(x), _flat(y)) for x, y in zip(xs, ys, strict=True)])).sum())


def _alike(numbers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Numbers in double precision, all on the device of the first."""
    device = numbers[0].device
    return [x.to(device, torch.float32 if device.type == "mps" else torch.float64) for x in numbers]


def _flat(x: torch.Tensor) -> torch.Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))
