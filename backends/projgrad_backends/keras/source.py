"""Where an optimizer's plan comes from: from rules, or from a saved optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import keras

from projgrad.rules import Parameter, Rules, resolve
from projgrad.tag import check_metric_name
from projgrad_backends.keras.parameters import in_list, in_model, is_built
from projgrad_backends.keras.projection import Projection
from projgrad_backends.keras.saving import load_plan, save_rules

__all__ = ["GivenRules", "LoadedPlan"]


class GivenRules:
    """Rules as the user gave them; holds the model only weakly, as a model holds its optimizer."""

    def __init__(self, rules: Rules | None, model: Any, metric: str) -> None:
        if model is not None and not isinstance(model, keras.layers.Layer):
            raise TypeError(f"model is a Keras model or layer, not {type(model).__name__}")
        resolve(rules, (), unused=True)  # raises for what is no rule, before anything waits for the model
        check_metric_name(metric, "ProjectedOptimizer")
        self._given, self._metric = rules is not None, metric
        self._rules = dict(rules or {})
        classes = [selector.__name__ for selector in self._rules if isinstance(selector, type)]
        if classes and model is None:
            raise ValueError(f"rules by layer class ({', '.join(classes)}) need the model: pass model=")
        self._model = None if model is None else weakref.ref(model)

    @property
    def ready(self) -> bool:
        model = None if self._model is None else self._model()
        return model is not None and is_built(model)

    def resolve(self, variables: Sequence[Any]) -> Projection:
        found = resolve(self._rules, self.parameters(variables), metric=self._metric)
        if not self._given and not found:
            raise ValueError("nothing is tagged: give rules, or tag layers with constrain(layer, ...)")
        return Projection(found)

    def parameters(self, variables: Sequence[Any]) -> list[Parameter]:
        return in_list(variables) if self._model is None else in_model(self._alive())

    def trained(self) -> list[Any]:
        return list(self._alive().trainable_variables)

    def config(self) -> dict[str, Any]:
        if self._model is not None:
            raise ValueError("the model is not built, so the plan cannot be saved yet: build the model before")
        return {"rules": save_rules(self._rules), "metric": self._metric}

    def _alive(self) -> Any:
        model = None if self._model is None else self._model()
        if model is None:
            raise ValueError("the model that the optimizer was wrapped for is gone: keep it while it is trained")
        return model


class LoadedPlan:
    """A plan from a saved optimizer."""

    ready = False

    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved = saved

    def resolve(self, variables: Sequence[Any]) -> Projection:
        return Projection(load_plan(self._saved, variables))

    def parameters(self, variables: Sequence[Any]) -> list[Parameter]:
        return in_list(variables)

    def trained(self) -> list[Any]:
        return []

    def config(self) -> dict[str, Any]:
        return {"plan": self._saved}
