"""What the last projections did, in variables that a compiled step can write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from projgrad.namespace import native
from projgrad.plan import PlanEntry
from projgrad.record import NONE_YET, was_recorded, what_it_did

__all__ = ["Record"]


class Record:
    """Two numbers for each entry of a plan, the largest violation before its last projection and the distance moved.

    They are no part of what Keras or TensorFlow save, as they stand on an object that neither knows.

    Args:
        entries: of the plan; those that are not among them are not recorded.
    """

    def __init__(self, entries: Sequence[PlanEntry] = ()) -> None:
        self._pairs = [(entry, (_variable(entry, "violation_before"), _variable(entry, "moved"))) for entry in entries]

    @property
    def variables(self) -> list[Any]:
        """The variables with these numbers."""
        return [variable for _, pair in self._pairs for variable in pair]

    def note(self, entry: PlanEntry, after: Sequence[Any], step: Any, due: Any) -> None:
        """Write down what a projection does to the variables; where it is not due, what its last one did stays.

        Args:
            entry: of the plan.
            after: the values that the variables are about to get.
            step: the number of steps made, for schedules.
            due: whether that projection is to be done now; an array where it is decided later.
        """
        pair = next((pair for other, pair in self._pairs if other is entry), None)
        if pair is None:
            return

        def did() -> list[Any]:
            found = what_it_did(entry, [native(variable)[0] for variable in entry.handles], after, step)
            return [keras.ops.cast(value, "float32") for value in found]

        def last() -> list[Any]:
            return [native(variable)[0] for variable in pair]

        values = (did() if due else last()) if isinstance(due, bool) else keras.ops.cond(due, did, last)
        for variable, value in zip(pair, values, strict=True):
            variable.assign(value)

    def by_name(self) -> dict[str, tuple[float, float]]:
        """The two numbers of every entry that was projected, by its name."""
        found = {}
        for entry, pair in self._pairs:
            before, moved = (float(keras.ops.convert_to_numpy(variable)) for variable in pair)
            if was_recorded((before, moved)):
                found[entry.name] = before, moved
        return found


def _variable(entry: PlanEntry, what: str) -> Any:
    # Keras wants names that differ, without slashes; TensorFlow knows no other signs than these, nor "_" at the start
    name = re.sub(r"[^\w.-]", "_", f"{what}_{entry.name}", flags=re.ASCII)
    return keras.Variable(NONE_YET, dtype="float32", trainable=False, aggregation="only_first_replica", name=name)
