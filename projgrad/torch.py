"""projgrad for PyTorch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.torch needs PyTorch: pip install "projgrad[torch]"') from error

from projgrad_backends.torch.inplace import project_
from projgrad_backends.torch.metric import register_metric
from projgrad_backends.torch.optimizer import ProjectedOptimizer
from projgrad_backends.torch.parameters import constrain
from projgrad_backends.torch.params import audit, project_params, violations
from projgrad_backends.torch.report import report
from projgrad_backends.torch.spg import SPG

__all__ = [
    "SPG",
    "ProjectedOptimizer",
    "audit",
    "constrain",
    "project_",
    "project_params",
    "register_metric",
    "report",
    "violations",
]
