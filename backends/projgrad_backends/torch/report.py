"""What there is to see of the parameters of a module or of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from projgrad.plan import PlanEntry
from projgrad.record import rows_of, tell_nonfinite
from projgrad.report import Report, make_report, on_host
from projgrad.rules import Rules
from projgrad_backends.torch.delegate import Delegate
from projgrad_backends.torch.held import Position, is_opaque
from projgrad_backends.torch.inplace import Record
from projgrad_backends.torch.namespace import xp
from projgrad_backends.torch.parameters import resolved
from projgrad_backends.torch.params import Params, known_in
from projgrad_backends.torch.sharded import whole

__all__ = ["Reporting", "check_nonfinite", "report"]

_WARN, _RAISE = "warn", "raise"


@torch.no_grad()
def report(params: Params, rules: Rules | None = None, *, step: int | None = None) -> Report:
    """What there is to see of all parameters, the unconstrained too, a row each: print it, or see `projgrad.Report`.

    Where parameters are sharded, call it in all processes: they are gathered, one after the other.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.
        step: the number of steps made, for schedules.

    Returns:
        The rows, in the order of the parameters; those of one set over several parameters are one.

    Raises:
        TypeError, ValueError: the rules do not fit, or have a schedule and there is no step.

    Examples:
        >>> print(report(model, {"*.weight": pg.MaxNorm(3.0)}))
    """
    known = known_in(params)
    held = [(entry, [id(x) for x in entry.handles]) for entry in resolved(rules, known)]
    return make_report(_rows([(id(p.handle), p.name, p.handle) for p in known], held), step)


class Reporting(Delegate):
    """The base of an optimizer that tells of its parameters."""

    _tagged: list[PlanEntry]
    _steps: int
    _named: dict[Position, str]  # all parameters, in the order of the model
    _nonfinite: str | None = None
    _record: Record | None = None

    @torch.no_grad()
    def report(self) -> Report:
        """What there is to see of all parameters that the optimizer holds, a row each, in the order of the model.

        Print it, or see `projgrad.Report`. Unconstrained parameters are listed too, by their names, or their positions
        in the param groups where no names are known. With ``record=True`` the rows say what the last projection did.
        Where parameters are sharded, call it in all processes: they are gathered, one after the other.
        """
        known = [(position, name, self._at(position)) for position, name in self._named.items()]
        recorded = {
            name: (whole(before).amax(), torch.linalg.vector_norm(torch.stack([whole(x) for x in moved])))
            for name, (before, moved) in (self._record or {}).items()
        }
        return make_report(_rows(known, [(entry, entry.handles) for entry in self._tagged]), self._steps, recorded)

    def _at(self, position: Position) -> Tensor:
        group, i = position
        return self.param_groups[group]["params"][i]

    @torch.compiler.disable
    @torch.no_grad()
    def _check_finite(self) -> None:
        """Say which parameters are not finite: their sum is not, either, and is quick to tell."""
        known = [(name, self._at(position)) for position, name in self._named.items()]
        known = [(name, x) for name, x in known if not nn.parameter.is_lazy(x)]
        sums = on_host([_sum(x) for _, x in known])
        odd = [pair for pair, total in zip(known, sums, strict=True) if not math.isfinite(total)]
        tell_nonfinite([name for name, x in odd if not bool(_plain(x).isfinite().all())], self._nonfinite)


def check_nonfinite(value: str | None) -> None:
    """Raise ValueError where the option is not one."""
    if value not in (None, _WARN, _RAISE):
        raise ValueError(f"ProjectedOptimizer: nonfinite={value!r} is none of None, {_WARN!r} and {_RAISE!r}")


def _rows(
    known: Sequence[tuple[Hashable, str, Tensor]], held: Iterable[tuple[PlanEntry, Sequence[Hashable]]]
) -> Iterator[tuple[PlanEntry | str, list[Tensor]]]:
    """What there is a row for, given all parameters by some keys, and the keys of those of each entry."""
    tensors = {key: x for key, _, x in known if not nn.parameter.is_lazy(x)}
    for row, keys in rows_of(held, ((key, name) for key, name, _ in known)):
        if keys[0] in tensors:
            yield row, [_plain(tensors[key]) for key in keys]


def _sum(x: Tensor) -> Tensor:
    x = _plain(x) if is_opaque(x) else _computable(x.detach())
    return xp.upcast(whole((torch.view_as_real(x) if x.is_complex() else x).sum()))


def _plain(x: Tensor) -> Tensor:
    """All of a tensor, as numbers."""
    return x.dequantize() if is_opaque(x) else _computable(whole(x.detach()))


def _computable(x: Tensor) -> Tensor:
    """`x`, in float32 where its numbers have 8 bits, with which torch does not compute."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x
