"""Tags: a constraint with the options of the optimizers that keep it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from projgrad.constraint import Constraint
from projgrad.function import as_constraint
from projgrad.registry import register, to_dict
from projgrad.schedule import Schedule
from projgrad.values import set_count

__all__ = ["EUCLIDEAN", "GRADIENT", "OPTIMIZER", "UPDATE", "Joint", "Tag", "as_tag", "check_metric_name"]

EUCLIDEAN, OPTIMIZER = "euclidean", "optimizer"  # metrics
GRADIENT, UPDATE = "gradient", "update"  # what is made tangent


@register()
@dataclass(frozen=True, repr=False)
class Tag:
    """A constraint with options, wherever a parameter is given a constraint: in rules, on a layer, in a param group.

    Args:
        constraint: the constraint, or a function of the weights.
        every: project after steps `every`, ``2 * every``, ... only, besides once at the start.
        metric: in which norm the nearest point is taken after a step: "euclidean", or "optimizer" for the one that the
            optimizer scales its steps by; None for what the wrapper says.
        tangent: what loses the part that points out of the set where the parameter is (see `Constraint.tangent`):
            "gradient" before the optimizer gets it, or "update", the step that the optimizer makes of it. In both, the
            momentum of the optimizer loses that part too. None for nothing.

    Raises:
        TypeError: `constraint` is neither, or `every` is not an int.
        ValueError: `every` is below 1, or `metric` or `tangent` is not known.
    """

    constraint: Constraint
    every: int = 1
    metric: str | None = None
    tangent: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.constraint, Tag):
            raise TypeError(f"{self.constraint!r} is a tag already: give its constraint, and all options at once")
        object.__setattr__(self, "constraint", as_constraint(self.constraint))
        set_count(self, "every", least=1)
        check_metric_name(self.metric, type(self).__name__)
        if self.tangent not in (None, GRADIENT, UPDATE):
            raise ValueError(
                f"{type(self).__name__}: tangent={self.tangent!r} is not known; it is {GRADIENT!r} or {UPDATE!r}"
            )

    def relaxed(self, rate: float | Schedule) -> Self:
        """This tag with its constraint relaxed."""
        return replace(self, constraint=self.constraint.relaxed(rate))

    def to_dict(self) -> dict[str, Any]:
        """The tag as plain JSON, for `projgrad.from_dict`."""
        return to_dict(self)

    def __repr__(self) -> str:
        options = "" if self.every == 1 else f", every={self.every}"
        options += "" if self.metric is None else f", metric={self.metric!r}"
        options += "" if self.tangent is None else f", tangent={self.tangent!r}"
        return f"{type(self).__name__}({self.constraint!r}{options})"

    def __str__(self) -> str:
        return repr(self.constraint) if self == Tag(self.constraint) else repr(self)


@register()
@dataclass(frozen=True, repr=False)
class Joint(Tag):
    """One set over several parameters together: over all that the rule selects.

    With ``axis=None`` their entries are one vector. With ``axis="incoming"``, or given axes, they are one matrix with a
    row per unit, in which the entries of one parameter follow those of the other; a parameter of one dimension, such as
    a bias, has one entry per unit.

    Args:
        constraint: the constraint, or a function of the weights.
        every: as in `Tag`.
        metric: as in `Tag`.
        tangent: as in `Tag`.

    Raises:
        TypeError, ValueError: as for `Tag`.

    Examples:
        >>> rules = {"head.*": pg.Joint(pg.MaxNorm(1.0))}  # a kernel and its bias
        >>> rules = {"*": pg.Joint(pg.MaxNorm(10.0, axis=None))}  # a whole network
    """


def check_metric_name(metric: str | None, who: str) -> None:
    """Raise ValueError where this is not the name of a metric, or None."""
    if metric is not None and not (isinstance(metric, str) and metric in (EUCLIDEAN, OPTIMIZER)):
        raise ValueError(f"{who}: metric={metric!r} is not known; it is {EUCLIDEAN!r} or {OPTIMIZER!r}")


def as_tag(thing: Any) -> Tag:
    """`thing` itself where it is a tag, and a constraint or a function of the weights without options.

    Raises:
        TypeError: it is none of these.
    """
    return thing if isinstance(thing, Tag) else Tag(as_constraint(thing))
