"""Saved weights under rules or a plan: which are constrained, which are outside, and where they are projected to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from projgrad.axes import group_size
from projgrad.constraint import Constraint
from projgrad.files.bfloat16 import BFLOAT16, rounded, widened
from projgrad.files.weights_file import Stored, WeightsFile
from projgrad.intersection import Intersection
from projgrad.moves import are_close
from projgrad.namespace import native
from projgrad.plan import Plan, PlanEntry
from projgrad.precision import tolerance
from projgrad.record import rows_of
from projgrad.report import Report, make_report, parts_of
from projgrad.rules import Parameter, Rules, Use, resolve
from projgrad.storage import clipped, near, on_one_line

__all__ = ["SavedWeights"]

_NO_LAYER = (
    'a file of weights has no layers, which tell what is "incoming": give the axes as numbers, such as axis=1, or '
    "use a plan that plan.save(path) wrote during the training"
)


@dataclass(frozen=True)
class SavedWeights:
    """The weights in a file, with what holds for them.

    Args:
        file: the file.
        names: of its arrays, without the key that they are under, to their names in the file.
        held: the entries of the plan, each with names in the file.
        step: the number of steps made.
        changed: what is not as in the file any more.
    """

    file: WeightsFile
    names: Mapping[str, str]
    held: tuple[tuple[PlanEntry, tuple[str, ...]], ...]
    step: int | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def under(
        cls,
        key: str,
        file: WeightsFile,
        *,
        plan: Plan | None = None,
        rules: Rules | None = None,
        step: int | None = None,
    ) -> Self:
        """The weights whose names start with a key, after which there is a dot or a slash; all for "".

        Raises:
            TypeError, ValueError: the rules or the plan do not fit the file, or there is a schedule and no step.
        """
        own = {at: found for at, stored in file.stored.items() if (found := _names(key, at, stored))}
        twice = [name for name, n in Counter(name for found in own.values() for name in set(found)).items() if n > 1]
        if twice:
            both = " and ".join(at for at, found in own.items() if twice[0] in found)
            raise ValueError(f"{file.path} has {both}: under {key!r}, each is {twice[0]}")
        names = {found[0]: at for at, found in own.items()}
        if not names:
            raise ValueError(f"{file.path} has no weights under {key!r}; the nearest: {near(key, file.stored)}")
        if plan is not None:
            held = tuple(_matched(key, entry, names, file.stored) for entry in plan)
        else:
            known = ((at, file.stored[at]) for at in names.values())
            made = resolve(rules, [_parameter(key, at, stored) for at, stored in known if stored.parameter])
            held = tuple((entry, entry.handles) for entry in made)
        if not held:
            why = "all that is selected is free" if plan is None else "the plan is empty"
            raise ValueError(f"nothing holds for {file.path}: {why}")
        for entry, _ in held:
            if entry.constraint.scheduled and step is None:
                raise ValueError(f"{entry.name}: {entry.constraint} changes with the step: say which by --step")
        return cls(file, names, held, step)

    def report(self) -> Report:
        """A row for every array that can be read as numbers; of the others, see `unreadable`."""
        known = [(at, name) for name, at in self.names.items() if self.file.stored[at].held is not None]
        rows = rows_of(self.held, known)
        return make_report(((row, [self._array(at) for at in keys]) for row, keys in rows), self.step)

    def unreadable(self) -> list[str]:
        """The arrays that cannot be read as numbers, with shape and dtype."""
        stored = {name: self.file.stored[at] for name, at in self.names.items()}
        unread = {name: one for name, one in stored.items() if one.held is None}
        return [f"{name}, {one.shape} of {on_one_line(clipped(one.dtype))}" for name, one in unread.items()]

    def outside(self, tol: float | None) -> list[str]:
        """What is not in its set, with its distance; the `tol` is that of `Constraint.contains`."""
        found = []
        for entry, keys in self.held:
            array, now = self._gathered(entry, keys), self._now(entry, keys)
            if tol is None and self._widened(keys):
                inside = all(np.all(_inside(part, x)) for part, x in parts_of(now, array) if x.size)
            else:
                inside = now.contains(array, tol)
            if not inside:
                far, xp = native(now.violation(array))
                found.append(f"{entry.name} is {float(xp.max(far)):.3g} away from {entry.constraint}")
        return found

    def projected(self) -> Self:
        """The weights in their sets.

        Raises:
            ValueError: some are NaN or infinite, for which there is no nearest point.
        """
        changed: dict[str, Any] = {}
        for entry, keys in self.held:
            array, now = self._gathered(entry, keys), self._now(entry, keys)
            new, xp = native(_narrow(now, array) if self._widened(keys) else now.project(array))
            if not bool(xp.all(xp.isfinite(new))):
                raise ValueError(f"{entry.name} has a NaN, or an infinity that cannot be projected")
            changed |= zip(keys, entry.scatter(new), strict=True)
        return replace(self, changed=changed)

    def _array(self, at: str) -> Any:
        return self.changed[at] if at in self.changed else self.file.stored[at].array

    def _gathered(self, entry: PlanEntry, keys: tuple[str, ...]) -> Any:
        return entry.gather([self._array(at) for at in keys])

    def _now(self, entry: PlanEntry, keys: tuple[str, ...]) -> Constraint:
        dtype = self.file.stored[keys[0]].dtype
        return entry.constraint if self.step is None else entry.constraint.at(self.step, dtype)

    def _widened(self, keys: tuple[str, ...]) -> bool:
        return self.file.stored[keys[0]].widened


def _without(key: str, name: str) -> str:
    """The name without the key that it is under; empty if it is not."""
    if not key:
        return name
    return name[len(key) + 1 :] if name.startswith((f"{key}.", f"{key}/")) else ""


def _names(key: str, at: str, stored: Stored) -> list[str]:
    """All names of an array that are under the key, without it."""
    return [name for other in (at, *stored.tied) if (name := _without(key, other))]


def _aliases(name: str, stored: Stored) -> tuple[str, ...]:
    """Other spellings: names of JAX, which have slashes, are often saved with dots."""
    return (*stored.aliases, name.replace(".", "/"))


def _parameter(key: str, at: str, stored: Stored) -> Parameter:
    first, *others = _names(key, at, stored)
    uses = (Use(first, _NO_LAYER, aliases=_aliases(first, stored)), *(Use(name, _NO_LAYER) for name in others))
    return Parameter(uses, stored.shape, stored.dtype, stored.refused, handle=at)


def _matched(
    key: str, entry: PlanEntry, names: Mapping[str, str], stored: Mapping[str, Stored]
) -> tuple[PlanEntry, tuple[str, ...]]:
    """The entry of a saved plan with the names in the file of its parameters."""
    keys = []
    for name, shape in zip(entry.names, entry.shapes, strict=True):
        same = [at for at in names.values() if name in _names(key, at, stored[at])]
        found = same or [at for own, at in names.items() if name in _aliases(own, stored[at])]
        if len(found) != 1:
            many = f"{len(found)}: {', '.join(found)}" if found else f"none; the nearest: {near(name, names)}"
            raise ValueError(f"the plan has {name}, of which the file has {many}")
        at = found[0]
        if stored[at].shape != shape:
            raise ValueError(f"the plan has {name} of shape {shape}, and the file of shape {stored[at].shape}")
        if stored[at].refused:
            raise ValueError(f"{name}: {stored[at].refused}")
        try:
            entry.constraint.check_dtype(stored[at].dtype)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None
        keys.append(at)
    if len({stored[at].dtype for at in keys}) > 1:
        raise ValueError(f"{entry.name} are of different dtypes: {', '.join(stored[at].dtype for at in keys)}")
    return entry, tuple(keys)


# -- bfloat16 in NumPy: what is stored has fewer digits than what it is computed with -------------------------------


def _inside(part: Constraint, x: np.ndarray) -> Any:
    """Which groups are in a set, as far as bfloat16 can tell; what must hold exactly, such as signs, does.

    So is a group that comes back from the projection, as where a bound is no number of bfloat16.
    """
    xp, axes = native(x)[1], part.group_axes(x.ndim)
    size = group_size(x.shape, axes)
    slack = 1.5 * tolerance(BFLOAT16, size, 1.0) / tolerance(x.dtype, size, 1.0)
    if isinstance(part, Intersection):
        each = [np.all(_inside(one, x), axis=axes, keepdims=True) for one in part.sets]
        away = np.expand_dims(part.violation(x), axes)
        return are_close(x, away, axes, xp, slack, np.logical_and.reduce(each))
    move = part.move(x, xp)
    same = widened(rounded(np.asarray(move.apply(x, xp)))) == x
    return move.keep(x, xp, slack) | np.all(same, axis=axes, keepdims=True)


def _narrow(constraint: Constraint, x: np.ndarray) -> np.ndarray:
    """The projection in bfloat16, in which groups that are in the set stay as they are."""
    y = np.array(x)
    for part, piece in parts_of(constraint, y):
        if piece.size:
            new = widened(rounded(np.asarray(part.project(piece))))
            piece[...] = np.where(_inside(part, piece), piece, new)
    return y
