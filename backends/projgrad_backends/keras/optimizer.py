"""The optimizer wrapper for Keras 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import keras

from projgrad.plan import Plan
from projgrad.rules import Rules
from projgrad.tag import EUCLIDEAN
from projgrad_backends.keras.metric import check_scaling, moments_before, weights_of
from projgrad_backends.keras.parameters import path
from projgrad_backends.keras.projection import Progress, Projection
from projgrad_backends.keras.saving import load_rules, save_plan
from projgrad_backends.keras.source import GivenRules, LoadedPlan

__all__ = ["ProjectedOptimizer"]


@keras.saving.register_keras_serializable("projgrad")
class ProjectedOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that projects the constrained weights after every step of another one.

    Weights are named by their paths, such as ``"dense/kernel"``, without the name of the model in front (a pattern may
    also match the full path). All constrained weights are projected when the optimizer is built, after every step, with
    or without a gradient, and once more at the end of `fit`, when averages (`use_ema`) are written back. A step is what
    changes the weights, also where gradients are accumulated. The optimizer can be compiled, used in a loop of one's
    own, saved with the model, and put into a `keras.optimizers.LossScaleOptimizer` or around one.

    With ``metric="optimizer"``, the point after a step is the one that is nearest in the metric of the step: where the
    optimizer turns a gradient g into g / h, entry by entry, the one that minimises ``sum(h * (y - x)**2)``. Only so do
    Adam and its kin settle on the constrained minimum where a set couples entries. The h are read from the state of
    Adam, AdamW, Nadam, Adamax, Lamb, RMSprop, Adagrad, Adadelta and Adafactor, each as its step computes them;
    `register_metric` adds others. Under SGD, before the first step and at the end of `fit`, the metric is the Euclidean
    one. Lion, Ftrl and Muon have none, and are refused.

    Args:
        optimizer: the optimizer to wrap, then available as `inner`.
        rules: which weights are constrained; None for those whose layers are tagged.
        model: the model to train, needed for rules by layer class and for ``axis="incoming"``.
        metric: "euclidean" or "optimizer"; a `projgrad.Tag` may say another one for what it selects.
        name: the name of the optimizer.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer, or the rules are not of the right form.
        ValueError: it is wrapped already, the rules do not fit the model, or a metric is asked for that the set or the
            optimizer does not have. Where `model` is not given or not built yet, that is found when the optimizer is
            built.

    Example:
        >>> rules = {"*/kernel": pg.MaxNorm(3.0)}
        >>> optimizer = projgrad.keras.ProjectedOptimizer(keras.optimizers.Adam(), rules, model=model)
        >>> model.compile(optimizer=optimizer, loss="mse")
    """

    def __init__(
        self,
        optimizer: Any,
        rules: Rules | None = None,
        *,
        model: Any = None,
        metric: str = "euclidean",
        name: str | None = None,
    ) -> None:
        _check(optimizer)
        source = GivenRules(rules, model, metric)
        projection = source.resolve(()) if source.ready else None
        if projection is not None:
            check_scaling(projection.plan, optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner = optimizer
        self._source: GivenRules | LoadedPlan = source
        self._projection: Projection | None = projection

    @property
    def plan(self) -> Plan:
        """Which weights are constrained, and how.

        Raises:
            ValueError: the weights are not known yet.
        """
        if self._projection is None:
            raise ValueError("the plan is made when the optimizer is built: fit, or call optimizer.build(variables)")
        return self._projection.plan

    def build(self, variables: Sequence[Any]) -> None:
        """Create the variables of the optimizer, and project the constrained weights for the first time.

        Args:
            variables: the variables to train.

        Raises:
            ValueError: the rules do not fit the variables, or constrain one that is not among them.
        """
        variables = list(variables)
        projection = self._projection or self._source.resolve(variables)
        _check_trained(projection, variables)
        check_scaling(projection.plan, self.inner)
        if not self.inner.built:
            self.inner.build(variables)
            check_scaling(projection.plan, self.inner)
        super().build(variables)
        self._projection = projection
        projection.project_at_start(self._progress())

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Make a step of the inner optimizer and project."""
        if not self.built and trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        projection = self._built("apply")
        before = moments_before(projection.plan, self.inner)
        with projection.alone():
            self.inner.apply(grads, trainable_variables)
        projection.project(self._progress(), lambda variables: weights_of(self.inner, variables, before))

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Make a step of the inner optimizer and project, without changing a variable.

        Returns:
            The new values of the trainable variables, and those of the optimizer's variables.
        """
        projection = self._built("stateless_apply")
        with self._holding(optimizer_variables):
            before = moments_before(projection.plan, self.inner)
        with projection.alone():
            trained, state = self.inner.stateless_apply(optimizer_variables, grads, trainable_variables)

        def weights(variables: Sequence[Any]) -> list[Any]:
            with self._holding(state):
                return weights_of(self.inner, variables, before)

        values = {id(v): value for v, value in zip(self._trainable_variables, trained, strict=True)}
        projection.project_values(values, self._progress(state), weights)
        return list(values.values()), state

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Write back the averages, if the inner optimizer keeps some, and project."""
        self.inner.finalize_variable_values(var_list)
        projection = self._built("finalize_variable_values")
        projection.project_all(self._progress().step if projection.plan.counts else None)

    @property
    def variables(self) -> list[Any]:
        """The variables of the inner optimizer; the wrapper has no state of its own."""
        return self.inner.variables

    @property
    def iterations(self) -> Any:
        """The number of steps made."""
        return self.inner.iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def loss_scale_factor(self) -> float | None:
        """The loss scale of the inner optimizer, which a `LossScaleOptimizer` around this one resets."""
        return self.inner.loss_scale_factor if "inner" in vars(self) else None

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if "inner" in vars(self):
            self.inner.loss_scale_factor = factor

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer asks."""
        return self.inner.scale_loss(loss)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables of the inner optimizer."""
        self.inner.set_weights(weights)

    # Keras saves the variables of `inner` by itself

    def save_own_variables(self, store: Any) -> None:
        """Save nothing, since the wrapper has no variables of its own."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing."""

    def get_config(self) -> dict[str, Any]:
        """The inner optimizer and the plan, with exact names and numeric axes, as plain JSON.

        Raises:
            ValueError: a constraint is not registered, or the plan waits for a model that is not built.
        """
        if self._projection is None and self._source.ready:
            self._projection = self._source.resolve(())
        config = {"name": self.name, "optimizer": keras.saving.serialize_keras_object(self.inner)}
        if self._projection is None:
            return config | self._source.config()
        return config | {"plan": save_plan(self._projection.plan, self._trainable_variables or self._source.trained())}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """The optimizer of this configuration; its plan is bound to the variables it is built with."""
        inner = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        rules, metric = load_rules(config.get("rules") or {}), config.get("metric", EUCLIDEAN)
        optimizer = cls(inner, rules, metric=metric, name=config.get("name"))
        if "plan" in config:
            optimizer._source = LoadedPlan(config["plan"])
        return optimizer

    def _holding(self, state: Sequence[Any]) -> Any:
        """A context in which the variables of the inner optimizer have these values."""
        return keras.StatelessScope(state_mapping=list(zip(self.inner.variables, state, strict=True)))

    def _progress(self, state: Sequence[Any] | None = None) -> Progress:
        """How far the inner optimizer is, by its variables or by the values that stand for them."""
        optimizer = self.inner
        while hasattr(optimizer, "inner_optimizer"):  # a LossScaleOptimizer
            optimizer = optimizer.inner_optimizer
        count = optimizer._iterations
        if state is not None:
            count = next(value for v, value in zip(self.inner.variables, state, strict=True) if v is count)
        return Progress(count, optimizer.gradient_accumulation_steps or 1)

    def _built(self, method: str) -> Projection:
        if not self.built or self._projection is None:
            raise ValueError(f"call optimizer.build(trainable_variables) before {method}")
        return self._projection


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"ProjectedOptimizer wraps a keras.optimizers.Optimizer, not {optimizer!r}")
    if isinstance(optimizer, ProjectedOptimizer) or isinstance(
        getattr(optimizer, "inner_optimizer", None), ProjectedOptimizer
    ):
        raise ValueError("this optimizer is a ProjectedOptimizer already: give it all rules at once")


def _check_trained(projection: Projection, variables: Sequence[Any]) -> None:
    trained = {id(variable) for variable in variables}
    pairs = [pair for entry in projection.plan for pair in zip(entry.names, entry.handles, strict=True)]
    missing = [name for name, variable in pairs if id(variable) not in trained]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} cannot stay constrained, because the optimizer does not train them (but "
            f"{', '.join(path(v) for v in variables) or 'nothing'}): make them trainable, or leave them free by a rule "
            f'such as "{missing[0]}": None'
        )
