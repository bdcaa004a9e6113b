"""What there is to see of the weights of a Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from projgrad.plan import Plan
from projgrad.record import rows_of_handles
from projgrad.report import Report, make_report
from projgrad.rules import Parameter, Rules, resolve
from projgrad_backends.keras.parameters import described
from projgrad_backends.keras.projection import without_gradients

__all__ = ["report", "report_of"]


def report(model: Any, rules: Rules | None = None, *, step: int | None = None) -> Report:
    """What there is to see of all weights, the unconstrained too, a row each: print it, or see `projgrad.Report`.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.
        step: the number of steps made, for schedules.

    Returns:
        The rows, in the order of the weights; those of one set over several weights are one. What was recorded is in
        that of the optimizer, `ProjectedOptimizer.report`.

    Raises:
        TypeError, ValueError: the rules do not fit the model.
    """
    parameters = described(model)
    return report_of(resolve(rules, parameters), parameters, step)


def report_of(
    plan: Plan, parameters: Sequence[Parameter], step: Any, recorded: Mapping[str, tuple[Any, Any]] | None = None
) -> Report:
    """`make_report` of parameters whose handles are variables."""
    with without_gradients():
        return make_report(rows_of_handles(plan, parameters), step, recorded)
