"""projgrad for Keras 3, on any of its backends."""

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    raise ImportError(
        'projgrad.keras needs Keras 3 and one of its backends: pip install "projgrad[keras]" '
        f"and tensorflow, jax or torch ({error})"
    ) from error

from projgrad_backends.keras import registration as _registration  # noqa: F401
from projgrad_backends.keras.callback import ReportCallback
from projgrad_backends.keras.metric import register_metric
from projgrad_backends.keras.optimizer import ProjectedOptimizer
from projgrad_backends.keras.projection import audit, project_params, violations
from projgrad_backends.keras.report import report
from projgrad_backends.keras.tagging import constrain

__all__ = [
    "ProjectedOptimizer",
    "ReportCallback",
    "audit",
    "constrain",
    "project_params",
    "register_metric",
    "report",
    "violations",
]
