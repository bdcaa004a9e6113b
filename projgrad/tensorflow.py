"""projgrad for bare TensorFlow: variables, modules and training loops of one's own."""

try:
    import tensorflow as _tensorflow  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.tensorflow needs TensorFlow: pip install "projgrad[tensorflow]"') from error

from projgrad_backends.tensorflow.params import audit as audit
from projgrad_backends.tensorflow.params import project_params as project_params
from projgrad_backends.tensorflow.params import report as report
from projgrad_backends.tensorflow.params import violations as violations
