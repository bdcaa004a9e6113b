"""projgrad for JAX, as optax transformations."""

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.optax needs JAX and optax: pip install "projgrad[jax]"') from error

from projgrad_backends.jax.metric import register_metric
from projgrad_backends.jax.params import audit, plan, project_params, violations
from projgrad_backends.jax.report import report
from projgrad_backends.jax.spg import spg
from projgrad_backends.jax.transform import apply_updates, project, projected

__all__ = [
    "apply_updates",
    "audit",
    "plan",
    "project",
    "project_params",
    "projected",
    "register_metric",
    "report",
    "spg",
    "violations",
]
