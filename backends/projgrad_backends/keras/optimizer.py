"""The optimizer wrapper for Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import keras
from keras import ops

from projgrad.constraint import Constraint
from projgrad.plan import Plan
from projgrad.report import Report
from projgrad.rules import Rules
from projgrad.tag import EUCLIDEAN
from projgrad_backends.keras.metric import check_scaling, moments_before, weights_of
from projgrad_backends.keras.parameters import path
from projgrad_backends.keras.projection import Progress, Projection, has_value, without_gradients
from projgrad_backends.keras.record import Record
from projgrad_backends.keras.report import report_of
from projgrad_backends.keras.saving import load_rules, save_plan
from projgrad_backends.keras.source import GivenRules, LoadedPlan
from projgrad_backends.keras.tangent import Tangents

__all__ = ["ProjectedOptimizer"]

_OTHERS = "the optimizer was built with other variables than these: wrap a new one for another or changed model"


@keras.saving.register_keras_serializable("projgrad")
class ProjectedOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that projects the constrained weights after every step of another one.

    Weights are named by their paths, such as ``"dense/kernel"``, without the name of the model in front (a pattern may
    also match the full path). All constrained weights are projected when the optimizer is built (but not where
    TensorFlow then restores its state from a checkpoint), after every step, with or without a gradient, and once more
    at the end of `fit`, when averages (`use_ema`) are written back. A step is what changes the weights, also where
    gradients are accumulated; one that a `keras.optimizers.LossScaleOptimizer` skips is none. The optimizer can be
    compiled, used in a loop of one's own or under a `tf.distribute.MirroredStrategy`, saved with the model, and put
    into a `LossScaleOptimizer` or around one. A quantized kernel, or that of a layer with LoRA, is refused.

    With the option `tangent` of a `projgrad.Tag`, gradients or steps lose what points out of the set, as does the
    momentum of the optimizers of Keras; of accumulated gradients, and of those of several devices, it is their sum.

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
        record: keep what the last projections did, for `report`, in two numbers for each set that are not saved. That
            takes another look at the weights at every step.
        name: the name of the optimizer.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer, or the rules are not of the right form.
        ValueError: it is wrapped already, the rules do not fit the model, or a metric or tangents are asked for that
            the set or the optimizer does not have; or the layer of a weight has another constraint than one of
            projgrad, which would act before the projection and not hold after it. Where `model` is not given or not
            built yet, that is found when the optimizer is built.

    Examples:
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
        record: bool = False,
        name: str | None = None,
    ) -> None:
        _check(optimizer)
        source = GivenRules(rules, model, metric)
        projection = source.resolve(()) if source.ready else None
        if projection is not None:
            _check_alone(projection.plan)
            check_scaling(projection.plan, optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner = optimizer
        self._source: GivenRules | LoadedPlan = source
        self._projection: Projection | None = projection
        self._recording, self._record = record, Record()

    @property
    def plan(self) -> Plan:
        """Which weights are constrained, and how.

        Raises:
            ValueError: the weights are not known yet.
        """
        self._refresh()
        if self._projection is None:
            raise ValueError("the plan is made when the optimizer is built: fit, or call optimizer.build(variables)")
        return self._projection.plan

    def report(self) -> Report:
        """What there is to see of the weights, the unconstrained too, a row each: print it, or see `projgrad.Report`.

        With ``record=True`` the rows say what the last projection did. In a loop of one's own, `finite` tells which
        weights have become NaN or infinite; in `fit`, `ReportCallback` does.

        Raises:
            ValueError: the optimizer is not built yet.
        """
        plan, parameters = self._built("report").plan, self._source.parameters(self._trainable_variables)
        step = int(keras.ops.convert_to_numpy(self._progress().step)) if plan.counts else None
        return report_of(plan, parameters, step, self._record.by_name())

    def build(self, variables: Sequence[Any]) -> None:
        """Create the variables of the optimizer, and project the constrained weights for the first time.

        Args:
            variables: the variables to train.

        Raises:
            ValueError: the rules do not fit the variables, or constrain one that is not among them.
        """
        variables = list(variables)
        self._refresh()
        projection = self._projection or self._source.resolve(variables)
        _check_trained(projection, variables)
        _check_alone(projection.plan)
        check_scaling(projection.plan, self.inner)
        new = not self.inner.built
        if new:
            self.inner.build(variables)
            check_scaling(projection.plan, self.inner)
        super().build(variables)
        self._projection = projection
        self._record = Record(projection.plan if self._recording else ())
        projection.project_at_start(self._progress(), new=new)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Make a step of the inner optimizer and project."""
        variables = None if trainable_variables is None else list(trainable_variables)
        if not self.built and variables is not None:
            self.build(variables)
        projection = self._built("apply")
        grads, finish = self._begin(projection, grads, variables or self._trainable_variables)
        with projection.alone():
            self.inner.apply(grads, variables)
        finish()

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Make a step of the inner optimizer and project, without changing a variable.

        Returns:
            The new values of the trainable variables, and those of the optimizer's variables.

        Raises:
            ValueError: these are not as many as the optimizer was built with.
        """
        projection = self._built("stateless_apply")
        if len(trainable_variables) != len(self._trainable_variables):
            raise ValueError(_OTHERS)
        given = list(optimizer_variables)
        with self._holding(given, trainable_variables):
            grads, finish = self._begin(projection, grads, self._trainable_variables)
        own = len(self.inner.variables)
        with projection.alone():
            trained, state = self.inner.stateless_apply(given[:own], grads, trainable_variables)
        with self._holding([*state, *given[own:]], trained) as scope:
            finish()
        variables = self._trainable_variables, self.variables
        trained, state = ([scope.get_current_value(v) for v in some] for some in variables)
        return trained, state

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Write back the averages, if the inner optimizer keeps some, and project.

        Raises:
            ValueError: these are other variables than those that the optimizer was built with.
        """
        projection = self._built("finalize_variable_values")
        known = {id(variable) for variable in self._trainable_variables}
        if any(id(variable) not in known for variable in var_list):
            raise ValueError(_OTHERS)
        self.inner.finalize_variable_values(var_list)
        if not all(map(has_value, projection.variables)):
            return  # an error is on its way, which Keras lets this run before
        projection.project_all(self._progress().step if projection.plan.counts else None)

    @property
    def variables(self) -> list[Any]:
        """The variables of the inner optimizer; the wrapper has no state of its own but what it records."""
        return [*self.inner.variables, *self._record.variables]

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

    @property
    def _model_variables_moving_average(self) -> Any:  # which the callback asks for
        raise ValueError(
            "SwapEMAWeights would put averages into the model that lie outside of the sets: leave it out; the averages "
            "are projected where they are written back, by ema_overwrite_frequency, at the end of fit, and by "
            "optimizer.finalize_variable_values(model.trainable_variables)"
        )

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer asks."""
        return self.inner.scale_loss(loss)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables of the inner optimizer."""
        self.inner.set_weights(weights[: len(self.inner.variables)] if self._recording else weights)

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
        self._refresh()
        config = {"name": self.name, "optimizer": keras.saving.serialize_keras_object(self.inner)}
        config |= {"record": True} if self._recording else {}
        if self._projection is None:
            return config | self._source.config()
        return config | {"plan": save_plan(self._projection.plan, self._trainable_variables or self._source.trained())}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """The optimizer of this configuration; its plan is bound to the variables it is built with."""
        inner = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        rules, metric = load_rules(config.get("rules") or {}), config.get("metric", EUCLIDEAN)
        optimizer = cls(inner, rules, metric=metric, record=config.get("record", False), name=config.get("name"))
        if "plan" in config:
            optimizer._source = LoadedPlan(config["plan"])
        return optimizer

    def _begin(
        self, projection: Projection, grads: Sequence[Any], variables: Sequence[Any]
    ) -> tuple[list[Any], Callable[[], None]]:
        """The gradients for the inner optimizer, and what is to be called after its step."""
        progress = self._progress()
        moments = moments_before(projection.plan, self.inner)
        with without_gradients():
            tangents = Tangents(projection.plan, self.inner, progress)
            grads = tangents.gradients(grads, variables)
        may_skip = isinstance(self.inner, keras.optimizers.LossScaleOptimizer)
        before = ops.copy(progress.count) if may_skip else None

        def finish() -> None:
            progress = self._progress(before)
            with without_gradients():
                tangents.steps()
                weights = partial(weights_of, self.inner, before=moments)
                projection.project(progress, weights, self._record)
                tangents.momentum(progress)

        return grads, finish

    def _refresh(self) -> None:
        """Make the plan for the model as it is now, which may have changed since the optimizer was wrapped."""
        if not self.built and self._source.ready:
            self._projection = self._source.resolve(())

    def _holding(self, state: Sequence[Any], trained: Sequence[Any]) -> Any:
        """A context in which the variables of the optimizer and those that it trains have these values."""
        pairs = [*zip(self.variables, state, strict=True), *zip(self._trainable_variables, trained, strict=True)]
        return keras.StatelessScope(state_mapping=pairs)

    def _progress(self, before: Any = None) -> Progress:
        """How far the inner optimizer is, and was before its last call."""
        optimizer = self.inner
        while hasattr(optimizer, "inner_optimizer"):  # a LossScaleOptimizer
            optimizer = optimizer.inner_optimizer
        return Progress(optimizer._iterations, optimizer.gradient_accumulation_steps or 1, before)

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


def _check_alone(plan: Plan) -> None:
    for entry in plan:
        for variable in entry.handles:
            other = getattr(variable, "constraint", None)
            if other is not None and not isinstance(other, Constraint):
                raise ValueError(
                    f"{entry.name}: its layer has the constraint {getattr(other, '__name__', type(other).__name__)}, "
                    f"which would not hold after the projection to {entry.constraint}: take one of them away, or "
                    "make one set of both, a & b"
                )
