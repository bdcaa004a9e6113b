"""projgrad for bare TensorFlow: variables, modules and training loops of one's own."""

try:
    import tensorflow as _tensorflow  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.tensorflow needs TensorFlow: pip install "projgrad[tensorflow]"') from error

from projgrad_backends.tensorflow.params import audit, project_params, report, violations

__all__ = [
    "audit",
    "project_params",
    "report",
    "violations",
]
