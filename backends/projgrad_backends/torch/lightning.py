"""Callbacks for Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging

from projgrad.report import Report
from projgrad_backends.torch.optimizer import ProjectedOptimizer

__all__ = ["ProjectCallback", "ReportCallback"]


class ReportCallback(Callback):
    """Logs what there is to see of the constrained parameters, to whatever loggers the trainer has.

    It is that of `projgrad.torch.ProjectedOptimizer.report`, as numbers: ``constraints/0.weight/violation``, ... In a
    sharded model, parameters are gathered for it.

    Args:
        every: the number of steps from one report to the next. Of several optimizers each step counts, and a report is
            made at the end of the batch in which it is due.
        prefix: of the names.

    Attributes:
        history: the pairs of a step and a report so far, for `projgrad.plot_reports`.

    Raises:
        ValueError: `every` is not a positive int; later, no optimizer of the trainer is a `ProjectedOptimizer`.

    Examples:
        >>> Trainer(callbacks=[ReportCallback(every=100)])
    """

    def __init__(self, every: int = 50, *, prefix: str = "constraints/") -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"ReportCallback: every={every!r} is not a positive int")
        self._every = every
        self._prefix = prefix
        self._last = 0  # the step of the last report, or where the training began
        self.history: list[tuple[int, Report]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a trainer without anything to report."""
        _projected(trainer, self)
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log, if it is time to."""
        step = trainer.global_step  # in a batch there may be none, as with accumulation, or several
        if step // self._every == self._last // self._every:
            return
        self._last = step
        report = Report(row for optimizer in _projected(trainer, self) for row in optimizer.report())
        self.history.append((step, report))
        scalars = {self._prefix + name: value for name, value in report.scalars().items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)


class ProjectCallback(Callback):
    """Projects averaged weights when they take the place of the trained ones, at the end of the training.

    The average of points of a convex set lies in it; of others, such as spheres, it does not. Put it behind
    `StochasticWeightAveraging` or `WeightAveraging`. Checkpoints that `WeightAveraging` writes hold the bare average
    nevertheless: call `projgrad.torch.project_params` after loading one.

    Raises:
        ValueError: at the start of the training, a callback that averages is behind this one, or no optimizer of the
            trainer is a `ProjectedOptimizer`.

    Examples:
        >>> Trainer(callbacks=[StochasticWeightAveraging(swa_lrs=1e-2), ProjectCallback()])
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what would not work."""
        _projected(trainer, self)
        behind = trainer.callbacks[trainer.callbacks.index(self) :]
        for callback in behind:
            if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
                raise ValueError(
                    f"ProjectCallback must stand behind {type(callback).__name__} in the list of callbacks"
                )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Project."""
        for optimizer in _projected(trainer, self):
            optimizer.project()


def _projected(trainer: Any, callback: Callback) -> list[ProjectedOptimizer]:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, ProjectedOptimizer)]
    if not found:
        raise ValueError(
            f"{type(callback).__name__}: no optimizer of the trainer is a ProjectedOptimizer; return one from "
            "configure_optimizers()"
        )
    return found
