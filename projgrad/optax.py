"""projgrad for JAX, as optax transformations."""

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.optax needs JAX and optax: pip install "projgrad[jax]"') from error

from projgrad_backends.jax.metric import register_metric as register_metric
from projgrad_backends.jax.params import audit as audit
from projgrad_backends.jax.params import plan as plan
from projgrad_backends.jax.params import project_params as project_params
from projgrad_backends.jax.params import violations as violations
from projgrad_backends.jax.report import report as report
from projgrad_backends.jax.spg import spg as spg
from projgrad_backends.jax.transform import apply_updates as apply_updates
from projgrad_backends.jax.transform import project as project
from projgrad_backends.jax.transform import projected as projected
