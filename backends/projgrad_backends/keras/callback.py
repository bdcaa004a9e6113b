"""A Keras callback that makes reports while a model is trained."""

from __future__ import annotations

from typing import Any

import keras

from projgrad.record import tell_nonfinite
from projgrad.report import Report, on_host
from projgrad.rules import Rules
from projgrad_backends.keras.optimizer import ProjectedOptimizer
from projgrad_backends.keras.parameters import described
from projgrad_backends.keras.projection import without_gradients
from projgrad_backends.keras.report import report

__all__ = ["ReportCallback"]


class ReportCallback(keras.callbacks.Callback):
    """Report on the weights during `fit`: keep the reports, write them for TensorBoard, and tell what is not finite.

    The reports are in `history`, a list of pairs of the step and the `projgrad.Report`, which
    `projgrad.plot_reports(callback.history)` draws. They are those of the model's `ProjectedOptimizer`; with another
    optimizer, or with `rules`, those of `projgrad.keras.report`.

    Args:
        log_dir: the directory for TensorBoard, better one of its own, such as "logs/constraints" beside what
            `keras.callbacks.TensorBoard("logs")` writes; None to write nothing. It is written by `tf.summary`, on
            every backend of Keras, so TensorFlow must be installed.
        rules: what is constrained; None for what the optimizer keeps, or the layers are tagged with.
        update_freq: "epoch", "batch", or after how many batches to report, as in `keras.callbacks.TensorBoard`.
        nonfinite: after every batch, also one of a compiled `fit`, "warn" or "raise" where there is a NaN or infinity
            in a trained weight, with its name. The host waits for every batch then. None for nothing.

    Raises:
        ImportError: `log_dir` is given, and TensorFlow is not installed.
        RuntimeError: while training, with ``nonfinite="raise"``.
        ValueError: `update_freq` or `nonfinite` is not known.

    Examples:
        >>> callback = projgrad.keras.ReportCallback("logs/constraints", nonfinite="raise")
        >>> model.fit(x, y, callbacks=[callback])
        >>> print(callback.history[-1][1])
    """

    def __init__(
        self,
        log_dir: Any = None,
        *,
        rules: Rules | None = None,
        update_freq: str | int = "epoch",
        nonfinite: str | None = None,
    ) -> None:
        super().__init__()
        frequency = 1 if update_freq == "batch" else update_freq
        if frequency != "epoch" and not (isinstance(frequency, int) and frequency >= 1):
            raise ValueError(f'ReportCallback: update_freq={update_freq!r} is not "epoch", "batch" or a positive int')
        if nonfinite not in (None, "warn", "raise"):
            raise ValueError(f'ReportCallback: nonfinite={nonfinite!r} is not None, "warn" or "raise"')
        self.history: list[tuple[int, Report]] = []
        self._log_dir, self._rules, self._frequency, self._nonfinite = log_dir, rules, frequency, nonfinite
        self._summary = None if log_dir is None else _tf_summary()
        self._writer: Any = None
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look for what is not finite, and report where that is due."""
        self._batches += 1
        due = self._frequency != "epoch" and self._batches % int(self._frequency) == 0
        if self._nonfinite:
            self._check()
        if due:
            self._report()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report where that is due."""
        if self._frequency == "epoch":
            self._report()

    def on_train_end(self, logs: Any = None) -> None:
        """Close what was written to."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _report(self) -> None:
        optimizer = self.model.optimizer
        step = int(keras.ops.convert_to_numpy(optimizer.iterations))
        projected = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        if self._rules is None and isinstance(projected, ProjectedOptimizer):
            made = projected.report()
        else:
            made = report(self.model, self._rules, step=step)
        self.history.append((step, made))
        if self._summary is not None:
            self._writer = self._writer or self._summary.create_file_writer(str(self._log_dir))
            with self._writer.as_default(step):
                for name, value in made.scalars().items():
                    self._summary.scalar(name, value)
            self._writer.flush()

    def _check(self) -> None:
        trained = [parameter for parameter in described(self.model) if parameter.handle.trainable]
        with without_gradients():
            finite = on_host([keras.ops.all(keras.ops.isfinite(parameter.handle)) for parameter in trained])
        odd = [parameter.name for parameter, ok in zip(trained, finite, strict=True) if not ok]
        tell_nonfinite(odd, self._nonfinite)


def _tf_summary() -> Any:
    try:
        import tensorflow.summary
    except ImportError as error:
        raise ImportError(
            "ReportCallback(log_dir) writes with tf.summary, as keras.callbacks.TensorBoard does: install tensorflow, "
            f"or leave log_dir out and give the scalars() of the reports in `history` to another writer ({error})"
        ) from error
    return tensorflow.summary
